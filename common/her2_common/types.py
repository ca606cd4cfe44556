"""Tensor shapes, named once. Letters: b cases of a batch, n rows of one modality, d features.

Images are standardised by ingest: zero mean, unit spread, clipped to [-5, 5].
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "n channels *size"]
"""mg: (n, 4, S, S) CC, MLO, crop of CC, crop of MLO; us: (n, 1, S, S); mri: (n, 1, V, V, V)."""
Features = Float[Tensor, "n d"]
Logits = Float[Tensor, "n 2"]
"""Column 0 is HER2-negative, column 1 HER2-positive (or no pCR, pCR)."""
Clinical = Float[Tensor, "b 5"]
"""Order of her2_common.cases.CLINICAL_INPUTS, scaled, 0 where unknown."""
Labels = Int[Tensor, "b"]
Rows = Int[Tensor, "n"]
"""For each row of a modality's tensor, the case of the batch to which it belongs."""
Scores = Float[Tensor, "b"]
"""Probability of the positive class; 0.5 is undecided."""
