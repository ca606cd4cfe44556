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
Logits = Float[Tensor, "b levels"]
LogitsOf = Float[Tensor, "_n levels"]
"""Column 0 is HER2-negative, column 1 HER2-positive (or no pCR, pCR); with three levels, column 2
is the log odds of HER2-low against HER2-zero among the negatives."""
Clinical = Float[Tensor, "b 5"]
"""Order of her2_common.cases.CLINICAL_INPUTS, scaled, 0 where unknown."""
Labels = Int[Tensor, "b"]
RowsOf = Int[Tensor, "_n"]
"""For each row of a modality's tensor, the case of the batch to which it belongs."""
Same = Float[Tensor, "_n _k"]
"""1 where a row of one modality and a row of another belong to the same case, else 0."""
Draws = Float[Tensor, "n 10"]
"""Random numbers in [0, 1), her2_client.augment.DRAWS for each image."""
Scalar = Float[Tensor, ""]
