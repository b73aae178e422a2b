"""Settings of LRMM."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LRMMConfig(BaseModel):
    """Settings of the model and weights of its losses; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    review_words: int = Field(100, ge=1, description="words of a review that are read")
    document_words: int = Field(1000, ge=1, description="L, words of a document, newest reviews first")
    least_count: int = Field(20, ge=1, description="occurrences in the training part that make a word known")
    least_reviews: int = Field(3, ge=1, description="reviews that make a word or pair of words part of the tone")
    word_size: int = Field(64, ge=1, description="length of a word's embedding")
    text_hidden: int = Field(64, ge=1, description="hidden units of the LSTM")
    text_dropout: float = Field(0.5, ge=0, lt=1)
    text_epochs: int = Field(4, ge=0, description="epochs of the LSTM")
    sentence_size: int = Field(128, ge=0, description="axes kept of the sentence embeddings")
    content_size: int = Field(64, ge=1, description="axes kept of each content modality")
    tone_penalty: float = Field(2.0, gt=0, description="of the regression of ratings on words")
    tone_folds: int = Field(5, ge=2)
    state_scale: float = Field(0.3, ge=0, description="of the LSTM's part of a review beside its sentence embedding")
    text_scale: float = Field(5.0, ge=0, description="of the texts' part beside the standardised stars")
    use_biases: bool = Field(True, description="whether stars are read, or texts alone")
    user_shrinkage: float = Field(5.0, ge=0, description="ratings that a user's bias is shrunk by")
    item_shrinkage: float = Field(10.0, ge=0)
    taste_size: int = Field(20, ge=0, description="length of the tastes of users and items")
    taste_penalty: float = Field(15.0, gt=0, description="directions of taste that are weaker vanish")
    members: int = Field(4, ge=1, description="models whose mean is served")
    hidden: int = Field(128, ge=1, description="units of each autoencoder")
    rating_hidden: int = Field(64, ge=1, description="units of the rating's nonlinear part")
    drop: float = Field(0.15, ge=0, lt=1, description="p_m, how often a modality is dropped whole (m-drop)")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the rating's hidden units")
    input_dropout: float = Field(0.2, ge=0, lt=1)
    joint: bool = Field(True, description="decode from the joint hidden state; False: each from its own, as written")
    impute: bool = Field(True, description="a missing modality enters reconstructed; False: as zeros")
    rho: float = Field(0.05, gt=0, lt=1, description="wanted mean activation of the autoencoders")
    sparsity: float = Field(0.01, ge=0, description="weight of the divergence from it")
    folds: int = Field(10, ge=2, description="parts of the training reviews that are predicted from the others")
    repeats: int = Field(4, ge=1, description="times that the training reviews are cut into folds anew")
    decay: float = Field(0.1, ge=0, description="weight decay")
