"""How a network is trained: the key `training` of a deep fixed effect."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from gdmix.config.base import Strict, known_as

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EPOCHS = 3


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise PydanticCustomError("warmup", "should be a number of steps, or a share below 1")
    return value


@known_as("training")
class Training(Strict):
    """AdamW on batches of rows, or of whole groups of rows for a ranking loss.

    An epoch is cut into equal batches of at most `batch_size` rows. What is said of a batch holds
    for all processes together: under ``torchrun``, or on Spark, each one computes its share.

    Examples
    --------
    >>> Training(steps=1000, batch_size=64, schedule="linear").epochs is None
    True
    """

    batch_size: int = Field(
        256, ge=1, description="rows; with a ranking loss whole groups of so many rows on average"
    )
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients are added up to one step: where memory ends"
    )
    epochs: int | None = Field(
        None, ge=1, description=f"passes over the training rows; default {EPOCHS}, without `steps`"
    )
    steps: int | None = Field(None, ge=1, description="instead of `epochs`")

    learning_rate: Rate = Field(1e-3, description="the highest, after the warm-up")
    encoder_learning_rate: Rate = Field(2e-5, description="of pretrained encoders")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="how learning rates come down to 0 after the warm-up"
    )
    warmup: Annotated[float, AfterValidator(_whole_or_share)] = Field(
        0.0, ge=0, allow_inf_nan=False, description="steps, or below 1 their share: rates rise"
    )
    weight_decay: float = Field(
        0.01, ge=0, allow_inf_nan=False, description="decoupled; not of biases and norms"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="of AdamW's means of gradients and their squares"
    )
    epsilon: Rate = Field(1e-8, description="of AdamW")
    bias_correction: bool = Field(True, description="false: AdamW as DeText and BERT had it")
    clip: Rate | None = Field(1.0, description="largest norm of a gradient; null: no limit")

    inner_split: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the training rows, or groups, that judge networks by their loss "
        "instead of training them: the best one is kept",
    )
    judge_on_validation: bool = Field(
        False,
        description="judge networks by the validation rows: metrics reported of these are then "
        "of rows that had a part in training",
    )
    judge_every: int | None = Field(None, ge=1, description="steps; default: an epoch")
    patience: int | None = Field(
        None, ge=1, description="stop after so many judgements that were no better"
    )

    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of what a GPU computes between weights, which are float32"
    )
    compile: bool = Field(False, description="compile the network for the GPU: minutes, at first")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda or cuda:1; auto: a GPU, where there is one",
    )
    log_every: int = Field(50, ge=1, description="steps between two points of the loss curve")
    seed: int | None = Field(None, ge=0, lt=2**63, description="default: that of the run")

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("steps") is None and value.get("epochs") is None:
            return {**value, "epochs": EPOCHS}
        return value

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise PydanticCustomError("training", "steps and epochs: choose one")
        if self.inner_split is not None and self.judge_on_validation:
            raise PydanticCustomError("training", "inner_split and judge_on_validation: choose one")
        for key in ("patience", "judge_every"):
            if getattr(self, key) is not None and not self.is_judged:
                raise PydanticCustomError(
                    "training",
                    f"{key}: needs rows to judge by: inner_split: 0.1, or judge_on_validation",
                )
        return self

    @property
    def is_judged(self) -> bool:
        """Whether networks are judged while they are trained, and the best one is kept."""
        return self.inner_split is not None or self.judge_on_validation
