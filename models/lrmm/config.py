"""Settings of LRMM."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from models.renamed import OldNames


class LRMMConfig(BaseModel):
    """Settings of the model and weights of its losses; a misspelt name is an error.

    Equation numbers are those of Wang et al., EMNLP 2018.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
