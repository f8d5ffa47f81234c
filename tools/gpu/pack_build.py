"""Pack a built extension to take along: FOLDER/<key>.so.xz, which build_extension.py unpacks.

    python tools/gpu/pack_build.py FOLDER TAR

TAR holds it by its path as FOLDER names it: unpacked in the repository, it lies where it belongs.
Without a build, or where it was taken along already, there is nothing to do. Needs no xz.
"""

import lzma
import shutil
import sys
import tarfile
from pathlib import Path


def main(folder: Path, tar: Path) -> None:
    built = sorted(folder.glob("*sm*/exllamav2_ext.so"))
    if not built or list(folder.glob("*.so.xz")):
        return
    home = built[0].parent
    packed = home.with_name(home.name + ".so.xz")
    with built[0].open("rb") as source, lzma.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    with tarfile.open(tar, "w") as archive:
        archive.add(packed)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
