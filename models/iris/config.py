"""Settings of IRIS."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Form = Literal["lacuna", "paper"]


class IRISConfig(BaseModel):
    """Settings of the model; a misspelt name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Form = Field("lacuna", description="lacuna: ours; paper: the equations of the paper and nothing else")
    embedding_size: int = Field(128, ge=1, description="d, length of a member's p_i and q_j")
    members: int = Field(2, ge=1, description="sets of latent factors whose mean similarity counts")
    tower_hidden: int | None = Field(
        128,
        ge=1,
        description="units of a tower's hidden layer; null, in form=paper alone: the length of the shortest raw "
        "feature, whose tower then has none",
    )
    tower_size: int = Field(32, ge=1, description="length of a tower's output")
    interest_size: int = Field(16, ge=1, description="hidden units of the interest-related network")
    rank: int = Field(128, ge=1, description="principal components kept of each modality's raw features")
    whitening: float = Field(0.5, ge=0, le=1, description="how far components come to one variance: 0 not, 1 all")
    reads: tuple[str, ...] | None = Field(None, description="the modalities that interest is read from; None: all")
    sharing: bool = Field(True, description="knowledge sharing between towers; False: Image-add-Text")
    alpha: float = Field(0.0, ge=0, le=1, description="exponent of the history's length (eq. 5)")
    beta: float = Field(0.8, ge=0, le=1, description="exponent of the interests' sum (eq. 4)")
    generated: bool = Field(True, description="missing content is generated; False: left out, which is zero")

    @property
    def bounded(self) -> bool:
        """Whether f_ij is cut before its exponential; the paper's is not."""
        return self.form == "lacuna"

    @model_validator(mode="after")
    def _what_the_form_has(self) -> Self:
        if self.form == "lacuna" and self.tower_hidden is None:
            raise ValueError("tower_hidden is a number where form=lacuna")
        if self.form == "paper" and self.members != 1:
            raise ValueError("form=paper has one member")
        return self


def paper_settings(embedding_size: int = 64) -> dict[str, Any]:
    """What form=paper has where nothing else is asked for; towers and interests are as wide as the factors."""
    return {
        "form": "paper",
        "embedding_size": embedding_size,
        "members": 1,
        "tower_hidden": None,
        "tower_size": embedding_size,
        "interest_size": embedding_size,
        "generated": False,
    }
