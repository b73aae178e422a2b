"""Settings of DGMRec."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DGMRecConfig(BaseModel):
    """Settings of the model and weights of its losses; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding_size: int = Field(64, ge=2, description="d")
    layers: int = Field(2, ge=1, description="LightGCN layers over the user-item graph")
    item_layers: int = Field(1, ge=1, description="L, layers over each modality's item graph (eq. 5)")
    neighbours: int = Field(10, ge=1, description="k of the item graphs (eq. 4)")
    rank: int = Field(128, ge=1, description="features wider than this are projected once to so many components")
    whitening: float = Field(0.5, ge=0, le=1, description="how far components come to one variance: 0 not, 1 all")
    factors: int = Field(256, ge=0, description="collaborative factors that the generator reads")
    activation: Literal["tanh", "sigmoid"] = Field("tanh", description="of the parts (eq. 1)")
    gate: Literal["sigmoid", "tanh", "none"] = Field("sigmoid", description="how taste denoises parts (eq. 3)")
    start: Literal["spectral", "random"] = Field("spectral", description="what the embeddings are at first")
    modal_weight: float = Field(0.1, gt=0, description="of each modality in eq. 18, before it is learned")
    modal: bool = Field(True, description="False leaves LightGCN alone, without any modality")
    imputation: Literal["generate", "mean", "nn", "neigh-mean", "multi-hop", "pers-pagerank", "heat"] = Field(
        "generate", description="what fills unobserved cells"
    )
    rung: Literal["auto", "neigh-mean", "multi-hop", "pers-pagerank", "heat"] = Field(
        "auto",
        description="imputer that a bundle falls back on for an item with users; auto: the best on held-out cells, "
        "or the imputation itself where it is one of these",
    )
    refine_every: int = Field(5, ge=1, description="epochs between graph refinements (eq. 16)")
    refine_weight: float = Field(0.6, ge=0, le=1, description="lambda of eq. 16; 0 keeps the first graph")
    ranking: Literal["softmax", "bpr"] = Field("softmax", description="loss and score: cosine softmax, or BPR (eq. 23)")
    negatives: int = Field(512, ge=1, description="items sampled a step as negatives of the softmax")
    ranking_temperature: float = Field(0.2, gt=0, description="of the softmax")
    leave_out: bool = Field(True, description="whether a positive is left out of its own user's history")
    user_power: float = Field(0.3, ge=0, le=1, description="a pair weighs its user's degree to minus this power")
    temperature: float = Field(0.2, gt=0, description="of every InfoNCE")
    club: float = Field(0.01, ge=0, description="weight of L_club (eq. 7)")
    nce: float = Field(0.01, ge=0, description="weight of L_nce (eq. 8)")
    behaviour: float = Field(0.2, ge=0, description="weight of L_bm (eq. 20)")
    user_item: float = Field(0.0, ge=0, description="weight of L_ui (eq. 21)")
    reconstruction: float = Field(0.1, ge=0, description="weight of L_recon (eq. 11)")
    generation: float = Field(0.5, ge=0, description="weight of L_gen (eq. 14) and of asking back hidden cells")
    contrast_rows: int = Field(512, ge=2, description="at most so many rows of a batch enter an InfoNCE")
    prior: float = Field(0.07, ge=0, description="of the mean item's users, how many an item's content speaks for")
    cold_neighbours: int = Field(80, ge=1, description="items by each modality that tell who will like a new one")
    cold_temperature: float = Field(0.1, gt=0, description="of their cosines: the lower, the more the nearest weigh")
    cold_popularity: float = Field(0.5, ge=0, le=2, description="each weighs its degree to this power")
    cold_kernel: float = Field(1.0, ge=0, description="weight of what these neighbours tell of a new item")
    cold_linear: float = Field(1.4, ge=0, description="weight of what a linear map of all items tells of it")
    cold_penalty: float = Field(8.0, gt=0, description="of that map")
    cold_spread: float = Field(1.25, ge=0, description="how far what it says of popularity sets new items apart")
    cold_lift: float = Field(0.6, ge=0, description="how much more popular a new item counts than its content says")
    hide_rate: float = Field(0.3, ge=0, lt=1, description="how often a hidden cell also loses other evidence")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the generators' hidden units")
    closest: bool = Field(True, description="whether a guess follows the items nearest by another modality, if near")
    denoise: float = Field(2.0, ge=0, description="of what all else tells of an observed feature, where items settle")
    lean: float = Field(2.0, ge=0, description="of the real features nearest to an unsure guess, beside the guess")
    l2: float = Field(0.0, ge=0, description="weight of the embeddings' L2 norm")
    seed: int = 0
