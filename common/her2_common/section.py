"""The base of every document of this project: frozen, and strict about keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A frozen part of a configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, values: Any) -> Any:
        """``min_cases: yes`` is a slip, not 1. (A field of type bool is named here.)"""
        if isinstance(values, dict):
            for key, value in values.items():
                field = cls.model_fields.get(key)
                if isinstance(value, bool) and field is not None and field.annotation is not bool:
                    got = "yes" if value else "no"
                    raise ValueError(f"{key}: expected another value than yes or no, got {got}")
        return values
