"""Cuts a piece out of the library: some of its modules and what they import, as a crate that compiles in seconds.

A mutant costs what its compilation and its tests cost, so both campaigns (`rules.py`, `every.py`) work on pieces.
A piece has the names, files and lines of the library; of what is only imported, the tests stay behind.
"""

import os
import pathlib
import re
import shutil
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PIECES = ROOT / "target" / "mutants"
TESTS = re.compile(r"#\[cfg\(test\)\]\nmod tests( \{.*|;)", re.DOTALL)
# The explorer's searches, the short ones first: most of what is broken is found by these.
EXPLORER = [["one_update_cancelled", "the_desired_section"],
            ["cuts_and_restarts", "with_failures", "a_full_disk"],
            ["explorer"]]
# What store and boot take of the settings; all of them would double what is compiled.
CONFIG = [("files", r"pub fn open_regular.*?\n\}\n"), ("settings", r"#\[derive\([^\n]*\n(?=pub enum BootloaderKind).*?\n\}\n")]
CONFIG_USES = """use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use nix::libc::O_NONBLOCK;
"""


class Piece:
    """The crate of `modules`, in a folder of its own below target/mutants. `tests` are files of tests/ and, below
    src/, of modules that are otherwise left out; `inner` are the modules to take of the first one."""

    def __init__(self, name, modules, tests=(), inner=(), whole_config=False):
        self.crate = PIECES / name
        self.modules, self.tests, self.inner, self.whole_config = modules, tests, inner, whole_config

    def lay(self):
        """Writes it anew, and gives its files. What has not changed keeps its time: cargo compiles no more than it must."""
        files, found = {}, list(self.modules)
        for path in self.tests:
            files[path] = (ROOT / path).read_text()
            if path.startswith("src/"):
                found.append(path.split("/")[1])
        for module in found:
            files |= self.texts(module)
            named = re.findall(r"\bcrate::([a-z0-9_]+)", "".join(files.values()))
            found += [other for other in dict.fromkeys(named) if other not in found and source(other).exists()]
        files["src/lib.rs"] = "".join(f"pub mod {module};\n" for module in sorted(found))
        files["Cargo.toml"] = self.manifest("".join(files.values()))
        self.write(files)
        return files

    def texts(self, module):
        if module == "config" and not self.whole_config:
            return {"src/config.rs": CONFIG_USES + "".join(
                re.search(item, (ROOT / "src" / "config" / f"{file}.rs").read_text(), re.DOTALL).group()
                for file, item in CONFIG)}
        if any(path.startswith(f"src/{module}/") for path in self.tests):
            return {f"src/{module}.rs": "#[cfg(test)]\nmod tests;\n"}
        if self.inner and module == self.modules[0]:
            texts = {f"src/{module}.rs": "".join(f"pub mod {inner};\n" for inner in self.inner)}
            for inner in self.inner:
                texts |= self.files(f"{module}/{inner}")
            return texts
        texts = self.files(module)
        # The rows of the settings are described by a type of their tests.
        if module in self.modules or module == "config":
            return texts
        return {path: TESTS.sub("", text) for path, text in texts.items() if "/tests" not in path}

    def files(self, module):
        files = [source(module), *sorted((ROOT / "src" / module).rglob("*.rs"))]
        return {str(file.relative_to(ROOT)): file.read_text() for file in files}

    def manifest(self, text):
        """The library's own manifest, less the dependencies that the piece does not name."""
        whole = tomllib.loads((ROOT / "Cargo.toml").read_text())
        lines = ["[package]", 'name = "fwupdate"', 'version = "0.1.0"', 'edition = "2024"', "autotests = false"]
        named = {name for table in ("dependencies", "dev-dependencies") for name in whole[table]
                 if f"{name.replace('-', '_')}::" in text}
        for table in ("dependencies", "dev-dependencies"):
            lines.append(f"[{table}]")
            lines += [f"{name} = {inline(value)}" for name, value in whole[table].items() if name in named]
        for path in self.tests:
            if path.startswith("tests/"):
                lines += ["[[test]]", f'name = "{pathlib.Path(path).stem}"', f'path = "{path}"']
        lines += ["[profile.dev]", "debug = false"]
        for name, value in whole["profile"]["dev"]["package"].items():
            if name in named:
                lines += [f"[profile.dev.package.{name}]", f"opt-level = {value['opt-level']}"]
        # For the explorer, which searches half a million states.
        lines += ["[profile.explore]", 'inherits = "dev"', "opt-level = 2", "[workspace]"]
        return "\n".join(lines) + "\n"

    def write(self, files):
        self.crate.mkdir(parents=True, exist_ok=True)
        if not (self.crate / "Cargo.lock").exists():
            shutil.copy(ROOT / "Cargo.lock", self.crate)
        for path, text in files.items():
            file = self.crate / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
        for file in (self.crate / "src").rglob("*.rs"):
            if str(file.relative_to(self.crate)) not in files:
                file.unlink()
        for folder in ("tests/records", "tests/hub", "tests/integration", "config", "packaging", "systemd", "docs"):
            link, target = self.crate / folder, ROOT / folder
            # A checkout may have moved since.
            if not link.is_symlink() or link.readlink() != target:
                link.unlink(missing_ok=True)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)


def environment():
    """A fast linker is used where there is one."""
    linker = "-C link-arg=-fuse-ld=mold" if shutil.which("mold") else ""
    ours = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
    return ours | {"RUSTFLAGS": linker, "CARGO_TERM_COLOR": "never"}


def source(module):
    return ROOT / "src" / f"{module}.rs"


def inline(value):
    """A dependency's value as TOML."""
    if isinstance(value, dict):
        items = [f"{key} = {inline(ROOT / item if key == 'path' else item)}" for key, item in value.items()
                 if key != "optional"]
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
