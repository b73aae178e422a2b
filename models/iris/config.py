"""Settings of IRIS."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class IRISConfig(BaseModel):
    """Settings of the model; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding_size: int = Field(128, ge=1, description="d, length of a member's p_i and q_j")
    members: int = Field(2, ge=1, description="sets of latent factors whose mean similarity counts")
    tower_hidden: int = Field(128, ge=1, description="units of a tower's hidden layer")
    tower_size: int = Field(32, ge=1, description="length of a tower's output")
    interest_size: int = Field(16, ge=1, description="hidden units of the interest-related network")
    rank: int = Field(128, ge=1, description="principal components kept of each modality's raw features")
    whitening: float = Field(0.5, ge=0, le=1, description="how far components come to one variance: 0 not, 1 all")
    reads: tuple[str, ...] | None = Field(None, description="the modalities that interest is read from; None: all")
    sharing: bool = Field(True, description="knowledge sharing between towers; False: Image-add-Text")
    alpha: float = Field(0.0, ge=0, le=1, description="exponent of the history's length (eq. 5)")
    beta: float = Field(0.8, ge=0, le=1, description="exponent of the interests' sum (eq. 4)")
