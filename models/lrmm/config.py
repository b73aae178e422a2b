"""Settings of LRMM."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.lrmm.factors import Penalties
from models.renamed import OldNames


class LRMMConfig(BaseModel):
    """Settings of the model and weights of its losses; a misspelt name is an error.

    Equation numbers are those of Wang et al., EMNLP 2018.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["lacuna"] = Field("lacuna", description="lacuna, or paper: the model of the paper as it is written")

    # texts (eq. 1-9)
    review_words: int = Field(100, ge=1, description="words of a review that are read")
    document_words: int = Field(1000, ge=1, description="L, words of a document, newest reviews first")
    min_word_count: int = Field(20, ge=1, description="occurrences in the training part that make a word known")
    word_embedding_size: int = Field(64, ge=1, description="length of a word's embedding")
    lstm_hidden: int = Field(64, ge=1, description="hidden units of the LSTM")
    lstm_dropout: float = Field(0.5, ge=0, lt=1, description="of the LSTM's inputs and output")
    lstm_epochs: int = Field(4, ge=0, description="epochs of the LSTM")
    sentence_size: int = Field(128, ge=0, description="principal axes kept of the sentence embeddings")

    # the items' own content (eq. 10)
    content_size: int = Field(64, ge=1, description="d, principal axes kept of each content modality")

    # ratings
    use_biases: bool = Field(True, description="whether ratings are read, or texts alone")
    factor_size: int = Field(20, ge=0, description="number of latent factors of users and items")
    factor_penalty: float = Field(15.0, gt=0, description="ridge penalty of the factors; weaker directions vanish")
    user_bias_penalty: float = Field(3.0, gt=0, description="ridge penalty of users' biases, fitted with the factors")
    item_bias_penalty: float = Field(2.0, gt=0, description="the same of items' biases")

    # autoencoders and rating (eq. 11-19)
    members: int = Field(4, ge=1, description="models of the ensemble, whose mean is served")
    hidden: int = Field(128, ge=1, description="hidden units of each autoencoder")
    rating_hidden: int = Field(64, ge=1, description="units of the rating's nonlinear part")
    joint: bool = Field(True, description="decode from the joint hidden state; False: each from its own, as written")
    impute: bool = Field(True, description="a missing modality enters reconstructed; False: as zeros")

    # regularisation (eq. 12-16, 20-21)
    drop: float = Field(0.15, ge=0, lt=1, description="p_m, how often a modality is dropped whole (m-drop)")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the rating's hidden units")
    input_dropout: float = Field(0.2, ge=0, lt=1, description="of the rating's inputs")
    rho: float = Field(0.05, gt=0, lt=1, description="wanted mean activation of the autoencoders")
    sparsity: float = Field(0.01, ge=0, description="weight of the KL divergence from it")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay (AdamW)")

    # training pairs
    folds: int = Field(10, ge=2, description="folds of the training reviews, each predicted from the others")
    repeats: int = Field(4, ge=1, description="times that the training reviews are cut into folds anew")

    @property
    def penalties(self) -> Penalties:
        """Of the latent factors."""
        return Penalties(self.factor_penalty, self.user_bias_penalty, self.item_bias_penalty)


class LRMMPaperConfig(BaseModel):
    """Settings of the model as the paper has it (section 3.3); a misspelt name is an error.

    Where the paper is silent or says two things, the description says what was chosen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["paper"] = Field("paper", description="the model of the paper; lacuna is the one served by default")

    # texts (eq. 1-9)
    document_words: int = Field(100, ge=1, description="L, words of a document in all, newest reviews first")
    min_word_count: int = Field(20, ge=1, description="occurrences in the training part that make a word known")
    word_embedding_size: int = Field(64, ge=1, description="length of a word's embedding (not in the paper)")
    lstm_hidden: int = Field(256, ge=1, description="d, hidden units of each LSTM and length of every embedding")
    lstm_dropout: float = Field(0.5, ge=0, lt=1, description="of the document embedding, after the recurrent layer")

    # m-drop (eq. 12-16)
    drop: float = Field(0.0, ge=0, lt=1, description="p_m, how often a modality is dropped whole (.5 in section 3.6)")
    noise: bool = Field(True, description="drop each of n_m modalities with probability 1 / n_m besides (eq. 14)")

    # m-auto (eq. 17-21)
    hidden: int = Field(1024, ge=1, description="hidden units of each autoencoder")
    joint: bool = Field(False, description="decode from the mean hidden state of all modalities; False: as written")
    word_level: bool = Field(True, description="rebuild texts from their words' states (eq. 18); False: from the mean")
    impute: bool = Field(True, description="a missing modality enters reconstructed; False: as zeros")
    rho: float = Field(0.05, gt=0, lt=1, description="wanted mean activation of the autoencoders")
    sparsity: float = Field(0.01, ge=0, description="weight of the KL divergence from it")

    # objective (eq. 19, 22)
    alpha: float = Field(1.0, gt=0, description="weight of the rating's loss at the start")
    beta: float = Field(1.0, gt=0, description="weight of the reconstruction's loss at the start")
    learn_loss_weights: bool = Field(True, description="learn alpha and beta, as uncertainties")
    weight_decay: float = Field(1e-4, ge=0, description="lambda, weight of the squared parameters")
    optimizer: Literal["adadelta", "adam", "sgd"] = Field("adadelta", description="what descends the gradient")


OLD_NAMES: OldNames = {
    "least_count": "min_word_count",
    "word_size": "word_embedding_size",
    "text_hidden": "lstm_hidden",
    "text_dropout": "lstm_dropout",
    "text_epochs": "lstm_epochs",
    "taste_size": "factor_size",
    "taste_penalty": "factor_penalty",
    "decay": "weight_decay",
    "least_reviews": None,
    "tone_penalty": None,
    "tone_folds": None,
    "state_scale": None,
    "text_scale": None,
    "user_shrinkage": None,
    "item_shrinkage": None,
}
