"""Tensor shapes, named once. Letters: b cases of a batch, n rows of one modality, d features.

Images are standardised by ingest: zero mean, unit spread, clipped to [-5, 5].

The names whose first letter is ``_`` are for the values of a mapping by modality: each modality
has its own n (and its own channels), so nothing ties the values to one another.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "n channels *size"]
"""mg: (n, 4, S, S) CC, MLO, crop of CC, crop of MLO; us: (n, 1, S, S); mri: (n, 1, V, V, V)."""
ImagesOf = Float[Tensor, "_n _channels ..."]
Features = Float[Tensor, "n d"]
FeaturesOf = Float[Tensor, "_n d"]
Logits = Float[Tensor, "b 2"]
LogitsOf = Float[Tensor, "_n 2"]
"""Column 0 is HER2-negative, column 1 HER2-positive (or no pCR, pCR)."""
Clinical = Float[Tensor, "b 5"]
"""Order of her2_common.cases.CLINICAL_INPUTS, scaled, 0 where unknown."""
Labels = Int[Tensor, "b"]
RowsOf = Int[Tensor, "_n"]
"""For each row of a modality's tensor, the case of the batch to which it belongs."""
Draws = Float[Tensor, "n 10"]
"""Random numbers in [0, 1), her2_client.augment.DRAWS for each image."""
Scalar = Float[Tensor, ""]
