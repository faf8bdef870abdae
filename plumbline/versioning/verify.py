"""`plumbline verify`: hash every artifact and every object in DVC's cache again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plumbline.versioning.cache import cache_folder, cached_listing, relative
from plumbline.versioning.digest import HASH, Hasher, differences, dvc_digest
from plumbline.versioning.lock import read_lock
from plumbline.versioning.pipeline import resolved


@dataclass(frozen=True)
class Corrupted:
    """An artifact or object whose content does not match its hash."""

    path: str
    """Relative to the workspace if it lies inside it."""
    expected: str
    found: str
    """DVC hash of the content on disk; empty if it is absent."""
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(root: Path) -> list[Corrupted]:
    """Hash every output in dvc.lock and every object in DVC's cache again.

    Returns:
        The corrupt ones, outputs first; empty if there are none. An absent output is listed. An object that the cache
        lacks is not, because it may be on the remote.

    Raises:
        ValueError: dvc.lock cannot be read.
    """
    if not read_lock(root):
        what = "not there, or without stages, so nothing could be verified; `plumbline run` makes it"
        return [Corrupted("dvc.lock", "", "", what)]
    hasher, current = Hasher(), _stages(root)
    outs = {
        path: md5
        for name, entry in read_lock(root).items()
        for path, md5 in entry.outs.items()
        if name in current or (root / path).exists()  # what is no longer in params.yaml may be removed
    }
    wrong = [bad for path, md5 in sorted(outs.items()) if (bad := _check_out(root, path, md5, hasher))]
    cache = cache_folder(root)
    for path in sorted(cache.glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if not HASH.fullmatch(name):
            continue  # a partial file of a killed DVC process
        holds = hasher.file(path) + (".dir" if name.endswith(".dir") else "")
        if holds != name:
            what = (
                "the object in DVC's cache holds other bytes than its name says; delete it, then `dvc pull` or re-run"
            )
            wrong.append(Corrupted(relative(path, root), name, holds, what))
    return wrong


def _stages(root: Path) -> set[str]:
    """Names of the stages that dvc.yaml has now; of all in dvc.lock if it cannot be resolved."""
    if not (root / "dvc.yaml").is_file():
        return set(read_lock(root))
    try:
        return set(resolved(root))
    except Exception:  # DVC's errors have no common class, and the bytes can be checked without dvc.yaml
        return set(read_lock(root))


def _check_out(root: Path, path: str, md5: str, hasher: Hasher) -> Corrupted | None:
    place = root / path
    if not place.exists():
        return Corrupted(path, md5, "", f"not there; `dvc checkout {path}`, or `dvc pull {path}` if the cache lacks it")
    current_md5 = dvc_digest(place, hasher)
    if current_md5 == md5:
        return None
    before = cached_listing(root, md5)
    detail = (
        ", ".join(differences(before, hasher.files(place))[:5]) if before and place.is_dir() else f"found {current_md5}"
    )
    return Corrupted(path, md5, current_md5, f"not what dvc.lock records ({detail}); `dvc checkout --force {path}`")
