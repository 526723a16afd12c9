"""Slabs of the MNI152 brain with their tissue, as NIfTI files: `python make_data.py FOLDER`.

The average of 152 heads (T1, 1 mm) and its maps of grey and white matter come with the package nilearn
(Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033), which pip downloads. Nothing of it is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np

NAME = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
HEAD = (slice(24, 173), slice(25, 209), slice(0, 156))
"""The voxels around the brain; the rest of the picture is empty."""
HALVES = {"left": slice(0, 75), "right": slice(75, 149)}
"""Along the first axis. The atlas is symmetric, so both halves of a slab are on the same side of the split."""
SLABS = {"training": [(0, 44), (48, 92), (140, 184)], "validation": [(96, 136)]}
"""From back to front. Four voxels between slabs are nobody's, because neighbouring slices are alike."""


def download(folder: Path) -> dict[str, nibabel.Nifti1Image]:
    """T1, grey and white matter by name."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "nilearn"]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob("nilearn-*.whl"))) as wheel:
        return {name: nibabel.load(wheel.extract(NAME.format(name), folder)) for name in ("t1", "gm", "wm")}


def tissue(grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """0 where neither has half of its greatest probability, 1 grey matter, 2 white matter."""
    is_brain = np.maximum(grey, white) >= 128
    return np.where(is_brain, np.where(grey > white, 1, 2), 0).astype(np.uint8)


def main(root: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        maps = download(Path(folder))
        affine = maps["t1"].affine
        t1, grey, white = (np.asanyarray(maps[name].dataobj)[HEAD] for name in ("t1", "gm", "wm"))
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in HEAD]
    volumes = {"t1": t1, "tissue": tissue(grey, white)}
    listed: dict[str, list[dict[str, str]]] = {part: [] for part in SLABS}
    for part, slabs in SLABS.items():
        for start, end in slabs:
            for side, half in HALVES.items():
                files = {kind: f"{kind}/{side}-{start}.nii.gz" for kind in volumes}
                moved = affine.copy()
                moved[:3, 3] += affine[:3, :3] @ [half.start, start, 0]
                for kind, volume in volumes.items():
                    (root / kind).mkdir(parents=True, exist_ok=True)
                    nibabel.save(nibabel.Nifti1Image(volume[half, start:end], moved), root / files[kind])
                listed[part].append({"image": files["t1"], "label": files["tissue"]})
    (root / "volumes.json").write_text(json.dumps(listed, indent=1))
    print(f"{root}/volumes.json: " + ", ".join(f"{len(files)} for {part}" for part, files in listed.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
