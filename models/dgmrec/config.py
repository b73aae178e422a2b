"""Settings of DGMRec, in groups; their names stand side by side, so that `--set NAME=VALUE` needs no group."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.renamed import OldNames

OLD_NAMES: OldNames = {
    "start": "initialisation",
    "closest": "near_duplicates",
    "lean": "knn_smoothing",
    "rung": "fallback_imputer",
    "leave_out": "leave_positive_out",
    "denoise": "feature_shrinkage",
    "prior": "cold_pseudo_count",
    "cold_kernel": "cold_kernel_weight",
    "cold_linear": "cold_ridge_weight",
    "cold_penalty": "cold_ridge_penalty",
    "cold_spread": "prediction_scale",
    "popularity_slope": "prediction_scale",
    "cold_lift": "popularity_offset",
    "whitening": None,
    "hide_rate": None,
}

# The equations of the paper and nothing else; where it leaves a value open, its range or its release's.
PAPER: dict[str, Any] = {
    "initialisation": "random",
    "layers": 3,
    "raw_features": True,
    "activation": "sigmoid",
    "modal_weight": 1.0,
    "learn_modal_weight": False,
    "converge_graphs": False,
    "generator": "parts",
    "near_duplicates": False,
    "knn_smoothing": 0.0,
    "dropout": 0.0,
    "align": "both",
    "content_every": 1,
    "content_rows": 0,
    "contrast_rows": 0,
    "behaviour": 0.01,
    "user_item": 0.01,
    "ranking": "bpr",
    "leave_positive_out": False,
    "user_power": 0.0,
    "cold_start": "modal",
    "feature_shrinkage": 0.0,
}


class GraphSettings(BaseModel):
    """Embeddings, the user-item graph, and the item graphs (eq. 2, 4-6, 16, 18)."""

    embedding_size: int = Field(64, ge=2, description="d, of embeddings and parts")
    collaborative: Literal["lightgcn", "autoencoder", "linear"] = Field(
        "lightgcn",
        description="form of the collaborative part: LightGCN's embeddings, or of each item a message to its users and "
        "a target for them, trained or in closed form",
    )
    history_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the histories hidden at a step of training; LightGCN's form reads them whole",
    )
    linear_penalty: float = Field(300.0, gt=0, description="l of EASE, which the linear form is cut from")
    linear_size: int = Field(
        0, ge=0, description="so many of the d components of the autoencoder's form hold the linear one beside it"
    )
    linear_weight: float = Field(1.0, ge=0, description="of the cosine of these beside that of the others")
    layers: int = Field(2, ge=1, description="LightGCN layers over the user-item graph (eq. 18)")
    initialisation: Literal["spectral", "random"] = Field(
        "spectral", description="of the embeddings: leading singular vectors of the interactions, or noise"
    )
    neighbours: int = Field(10, ge=1, description="k of the item graphs (eq. 4)")
    item_layers: int = Field(1, ge=1, description="L, layers over each modality's item graph (eq. 5)")
    refine_every: int = Field(5, ge=1, description="epochs between graph refinements (eq. 16)")
    refine_weight: float = Field(
        0.6,
        ge=0,
        le=1,
        description="lambda of eq. 16; 0 keeps the first graph, in which an item has neighbours by what is observed",
    )
    converge_graphs: bool = Field(
        True, description="whether the graphs, unless lambda is 0, end where refining them for ever would bring them"
    )


class GeneratorSettings(BaseModel):
    """Parts, what fills unobserved cells, and the generator (eq. 1, 3, 12-15, 17)."""

    modal: bool = Field(True, description="False leaves the collaborative part alone, without any modality")
    modal_weight: float = Field(0.1, gt=0, description="of each modality's parts in eq. 17, before it is learned")
    learn_modal_weight: bool = Field(True, description="whether it is learned")
    raw_features: bool = Field(
        False, description="whether encoders and item graphs read features as they are, not centred and whitened"
    )
    preference: Literal["projected", "free"] = Field(
        "projected",
        description="of users for modalities (eq. 2): tanh(W e_u), or an embedding, for later users its mean",
    )
    activation: Literal["tanh", "sigmoid"] = Field("tanh", description="of the parts (eq. 1)")
    gate: Literal["sigmoid", "tanh", "none"] = Field("sigmoid", description="how preference gates parts (eq. 3)")
    rank: int = Field(128, ge=1, description="features wider than this are projected once to so many components")
    imputation: Literal["generate", "mean", "nn", "neigh-mean", "multi-hop", "pers-pagerank", "heat"] = Field(
        "generate", description="what fills unobserved cells"
    )
    fallback_imputer: Literal["auto", "neigh-mean", "multi-hop", "pers-pagerank", "heat"] = Field(
        "auto",
        description="imputer that a bundle falls back on for an item with users; auto: the best on held-out cells, "
        "or the imputation itself where it is one of these",
    )
    generator: Literal["residual", "parts"] = Field(
        "residual",
        description="residual: a step away from a closed form, which reads all that is known of the cell; parts: eq. "
        "12-15, from the other modalities' general parts and from preferences alone",
    )
    factors: int = Field(256, ge=0, description="collaborative factors that the generator reads")
    near_duplicates: bool = Field(
        True, description="whether a generated feature follows near duplicates by another modality"
    )
    knn_smoothing: float = Field(
        2.0, ge=0, description="weight of the mean of the nearest real features in an unsure generated feature"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="of the generators' hidden units")


class LossSettings(BaseModel):
    """Weights of the losses beside the ranking (eq. 7-8, 11, 14, 20-21, 24)."""

    club: float = Field(0.01, ge=0, description="weight of L_club (eq. 7)")
    nce: float = Field(0.01, ge=0, description="weight of L_nce (eq. 8)")
    reconstruction: float = Field(0.1, ge=0, description="weight of L_recon (eq. 11)")
    generation: float = Field(0.5, ge=0, description="weight of L_gen (eq. 14) and the reconstruction of hidden cells")
    behaviour: float = Field(0.2, ge=0, description="weight of L_bm (eq. 20)")
    user_item: float = Field(0.0, ge=0, description="weight of L_ui (eq. 21)")
    temperature: float = Field(0.2, gt=0, description="of every InfoNCE (eq. 8, 20-21)")
    align: Literal["modal", "both"] = Field(
        "modal",
        description="what the losses on content bend: modal parts alone, or collaborative ones and preferences as well",
    )
    content_every: int = Field(4, ge=1, description="steps between the losses on content (eq. 7-8, 11, 14)")
    content_rows: int = Field(512, ge=0, description="items of such a step, drawn at random; 0: those of the batch")
    contrast_rows: int = Field(
        512, ge=0, description="pairs of a batch of which L_bm and L_ui are computed (eq. 20-21); 0: all"
    )
    l2: float = Field(0.0, ge=0, description="weight of the embeddings' L2 norm")


class RankingSettings(BaseModel):
    """The ranking loss (eq. 19, 23)."""

    ranking: Literal["softmax", "bpr"] = Field("softmax", description="loss and score: cosine softmax, or BPR (eq. 23)")
    negatives: int = Field(512, ge=1, description="items sampled a step as negatives of the softmax")
    ranking_temperature: float = Field(0.2, gt=0, description="of the softmax")
    leave_positive_out: bool = Field(True, description="whether a positive is left out of its own user's history")
    user_power: float = Field(0.3, ge=0, le=1, description="a pair weighs its user's degree to minus this power")


class ColdStartSettings(BaseModel):
    """Vectors of items from their content, after training (`models.dgmrec.cold_start`)."""

    cold_start: Literal["regression", "modal"] = Field(
        "regression",
        description="of a cold item: what warm items lead to expect, or its modal part alone",
    )
    cold_pseudo_count: float = Field(
        0.07, ge=0, description="as how many users an item's content counts, in shares of the mean item's users"
    )
    cold_ridge_weight: float = Field(1.4, ge=0, description="weight of the ridge regression on a warm item's content")
    cold_ridge_penalty: float = Field(8.0, gt=0, description="of the ridge regressions on content")
    cold_kernel_weight: float = Field(1.0, ge=0, description="likewise of the kernel regression on neighbours")
    cold_neighbours: int = Field(80, ge=1, description="of the kernel regression, by each modality")
    cold_temperature: float = Field(0.1, gt=0, description="t of the kernel exp((cosine - 1) / t) degree^p")
    cold_popularity: float = Field(0.5, ge=0, le=2, description="p of that kernel")
    prediction_scale: float = Field(
        2.0,
        ge=0,
        description="by what predicted differences between new items, in popularity and in taste, are widened",
    )
    popularity_offset: float = Field(
        2.0,
        description="how far above the mean warm item a new one stands that is predicted to be one standard deviation "
        "more popular than the mean, in standard deviations of the warm ones' popularity",
    )
    catalogue_offset: float | None = Field(
        None,
        description="likewise of cold items of the training catalogue; null: the former, as far as there are more than "
        "chance would leave",
    )
    feature_shrinkage: float = Field(
        2.0, ge=0, description="weight of a warm item's generated features beside its observed ones"
    )


class DGMRecConfig(ColdStartSettings, RankingSettings, LossSettings, GeneratorSettings, GraphSettings):
    """Settings of the model and weights of its losses; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["lacuna", "paper"] = Field(
        "lacuna", description="which values the others have by default: ours, or those of the paper's equations"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_form(cls, given: Any) -> Any:
        is_paper = isinstance(given, dict) and given.get("form") == "paper"
        return PAPER | given if is_paper else given

    @property
    def final_refinement(self) -> float:
        """lambda of eq. 16 once training is over."""
        return 1.0 if self.converge_graphs and self.refine_weight else self.refine_weight

    @model_validator(mode="after")
    def _linear_beside_the_autoencoder(self) -> Self:
        if self.linear_size and (self.collaborative != "autoencoder" or self.ranking != "softmax"):
            raise ValueError("linear_size is for collaborative=autoencoder with ranking=softmax")
        if self.linear_size == 1 or self.linear_size > self.embedding_size - 2:
            raise ValueError("linear_size leaves 2 of the d components to the others, and takes 2 itself")
        return self
