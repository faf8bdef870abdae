"""A calibration set in the two forms that quantization libraries accept. Imported lazily, as it needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from plumbline.calibration_set.reader import read_calibration_set

if TYPE_CHECKING:
    import datasets


class CalibrationDataset(Dataset[dict[str, torch.Tensor]]):
    """A calibration set as a torch Dataset, in order, unpadded.

    Item i is `{"input_ids": int64 (n_tokens,), "attention_mask": int64 (n_tokens,), all ones}`. Samples differ in
    length: use a batch size of 1, or a collator that pads and masks, so that padding reaches no statistic.
    """

    def __init__(self, path: str | Path) -> None:
        """Open `path`, a folder data/calibration_set/<choice>; errors as `read_calibration_set`."""
        self._table = read_calibration_set(Path(path), columns=["sample_id", "input_ids"])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: the calibration set has {len(self)} samples")
        ids = np.array(self._table["input_ids"][index % len(self)].values, dtype=np.int64)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(len(ids), dtype=torch.int64)}


def load_calibration_set(path: str | Path) -> datasets.Dataset:
    """The set as a `datasets.Dataset` in memory, in order: every column of samples.parquet and `attention_mask`.

    Errors as `read_calibration_set`.
    """
    import datasets

    table = read_calibration_set(Path(path))
    ids = table["input_ids"].combine_chunks()
    ones = pa.array(np.ones(len(ids.flatten()), dtype=np.int8))
    mask = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(ids.value_lengths())]), pa.int32()), ones)
    return datasets.Dataset(table.append_column("attention_mask", mask))
