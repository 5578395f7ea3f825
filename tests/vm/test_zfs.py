from __future__ import annotations

from pathlib import Path

from tests.vm.kernel import Kernel
from tests.vm.zfs import adapt_headers, merge_usr, obtain

KERNEL = Kernel(Path("/nowhere/6.12.1-cloud-amd64"))


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_build_is_kept_for_its_kernel_and_compiler(tmp_path: Path) -> None:
    built = []

    def build(base: Kernel, target: Path) -> str:
        built.append(base.release)
        target.mkdir()
        return "2.3.2"

    first = obtain(tmp_path, KERNEL, "12.2.0", build)

    assert first.root == tmp_path / "zfs" / "6.12.1-cloud-amd64_zfs-2.3.2_gcc-12.2.0"
    assert obtain(tmp_path, KERNEL, "12.2.0", build) == first
    assert obtain(tmp_path, KERNEL, "14.1.0", build) != first
    assert obtain(tmp_path, Kernel(Path("/nowhere/6.12.2-cloud-amd64")), "12.2.0", build) != first
    assert built == ["6.12.1-cloud-amd64", "6.12.1-cloud-amd64", "6.12.2-cloud-amd64"]


def test_what_packages_have_beside_usr_comes_below_it(tmp_path: Path) -> None:
    write(tmp_path / "sbin" / "zpool", "tool")
    write(tmp_path / "lib" / "x86_64-linux-gnu" / "libzfs.so.6.0.0")
    (tmp_path / "lib" / "x86_64-linux-gnu" / "libzfs.so.6").symlink_to("libzfs.so.6.0.0")
    write(tmp_path / "usr" / "sbin" / "zgenhostid")

    merge_usr(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["usr"]
    assert {path.name for path in (tmp_path / "usr" / "sbin").iterdir()} == {"zgenhostid", "zpool"}
    assert (tmp_path / "usr" / "lib" / "x86_64-linux-gnu" / "libzfs.so.6").readlink() == Path("libzfs.so.6.0.0")


def test_headers_point_to_where_they_are_and_ask_for_no_debugging_information(tmp_path: Path) -> None:
    directory = tmp_path / "src" / "linux-headers-6.12.1-cloud-amd64"
    makefile = write(directory / "Makefile", "include /usr/src/linux-headers-6.12.1-common/Makefile\n")
    settings = write(
        directory / "include" / "config" / "auto.conf",
        "CONFIG_SMP=y\nCONFIG_DEBUG_INFO=y\nCONFIG_DEBUG_INFO_DWARF5=y\nCONFIG_DEBUG_FS=y\n",
    )

    assert adapt_headers(tmp_path, "6.12.1-cloud-amd64") == directory
    assert makefile.read_text() == f"include {tmp_path}/src/linux-headers-6.12.1-common/Makefile\n"
    assert settings.read_text() == "CONFIG_SMP=y\nCONFIG_DEBUG_FS=y\n"
