"""Checks of the files that a description names: location, presence, hashes, arrays, and pickles without code."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

from gap_bioimage.validation.archive.package import Package, few, fold, open_zip, shown, unsafe_path
from gap_bioimage.validation.archive.rdf import FileReference, texts
from gap_bioimage.validation.check import BLOCKS, DEGRADES, Outcome, Status, archive_check, counted, one_sentence

MAX_TENSOR_BYTES = 4 * 2**30  # a test tensor is read as a whole, and its output several times
MAX_PICKLE_BYTES = 64 * 2**20
# programs cannot run a model without these; bioimageio.spec requires the other files in format 0.5 only
_NEEDED = ("weights", "inputs", "outputs", "test_", "source", "dependencies")
_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
_LEGACY_PICKLES = 5  # files of torch before 1.6 are five pickles in a row, followed by raw numbers
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # their first pickle, torch's magic number
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_KEY_OF_TENSORS = re.compile(rb"X.\0\0\0(\w+)q.(?:\}|ccollections\nOrderedDict)", re.DOTALL)  # a text and a mapping
_NUMPY = re.compile(r"numpy\.(dtype|ndarray|dtypes\.\w+|_?core\.multiarray\.(_reconstruct|scalar))|_codecs\.encode")
_SAVE = "torch.save(model.state_dict(), ...)"
_HOW_TO_SAVE = {"torchscript": "torch.jit.save", "pytorch_state_dict": _SAVE}
_CALLED = {"torchscript": "TorchScript", "pytorch_state_dict": "a state_dict saved by torch.save"}
_FIX_CODE = f"Save a plain state_dict with {_SAVE}, not the model, an optimizer or arguments."


def _local(package: Package) -> list[FileReference]:
    """Return the references to files in the package, each file and hash once."""
    local = [r for r in package.references if not r.is_remote and not unsafe_path(r.path)]
    return list({(r.path, r.sha256): r for r in local}.values())


@archive_check("archive.references", BLOCKS, order=8, breaks="programs would read files outside the package",
               fix="Refer to files by their names inside the package.")  # fmt: skip
def inside(package: Package) -> Outcome | str:
    """References to files inside the package."""
    unsafe = {r.path: r for r in package.references if not r.is_remote and unsafe_path(r.path)}
    dangers = [f"{r.where} {shown(path)} {unsafe_path(path)}" for path, r in unsafe.items()]
    dangers += [f"{r.label} is not an address that programs can download from; they support http and https"
                for r in package.remote if not re.match(r"\s*https?:", r.path, re.IGNORECASE)]  # fmt: skip
    # Fields of other formats may name files, too: none may name a file outside the package.
    for text in (text for text in dict.fromkeys(texts(package.rdf)) if 0 < len(text) < 4096 and text not in unsafe):
        # also in the notations of formats 0.3 and 0.4: file.py:Callable, conda:file.yaml
        paths = {text, text.rsplit(":", 1)[0], text.split(":", 1)[-1]} - {""}
        if any(map(package.names_outside, paths)):
            dangers.append(f"{shown(text)} is a file outside the package")
    return few(dangers) or Outcome("passed", f"{counted(len(_local(package)), 'referenced file')} inside the package")


@archive_check("archive.rdf_name", BLOCKS, order=7, breaks="programs do not find the description",
               fix="Name it rdf.yaml.", repair="rename_description")  # fmt: skip
def findable(package: Package) -> str | None:
    """A description under a name that programs look for in a zip."""
    is_lost = package.rdf_name.endswith(".yml") and package.source.name != package.rdf_name
    return f"the description is named {package.rdf_name}" if is_lost else None


@archive_check("archive.files", BLOCKS, order=9, breaks="the model cannot be loaded",
               fix="Add the file, or correct its path.")  # fmt: skip
def present(package: Package) -> Outcome:
    """Every file that the description names; a warning if programs can run the model without it."""
    twins, absent, is_needed = {fold(name): name for name in package.names}, list[str](), False
    for reference in _local(package):
        path = package.file(reference.path)
        if why := absence(path):
            twin = twins.get(fold(reference.name)) if path is None else None
            other = f"; {twin!a} is, but it is not spelled exactly like {reference.path!a}" if twin else ""
            absent.append(f"{reference.where} {shown(reference.path)} {why}{other}")
            is_wanted = path is None and not str(package.rdf.get("format_version")).startswith("0.4")
            is_needed |= is_wanted or reference.where.startswith(_NEEDED)
    if absent:
        return Outcome("failed" if is_needed else "warning", few(absent))
    unnamed = sorted({*package.names} - {r.name for r in package.references} - {package.rdf_name})
    others = f"; the description does not name {few(list(map(shown, unnamed)), 5)}" if unnamed else ""
    return Outcome("passed", f"all referenced files are there{others}")


def absence(path: Path | None) -> str:
    """Return why a file is absent or only a pointer of Git LFS; empty if it is neither."""
    if path is None:
        return "is not there"
    with path.open("rb") as file:
        is_pointer = file.read(64).startswith(b"version https://git-lfs")
    return "is a pointer of Git LFS, not the file itself: fetch it with git lfs pull" if is_pointer else ""


@archive_check(
    "archive.hashes", BLOCKS, order=10, breaks="programs refuse changed files",
    fix="Download it again; if you changed the file on purpose, write its new sha256 into the description.",
)  # fmt: skip
def unchanged(package: Package) -> Outcome | str:
    """Files whose sha256 is the one stated in the description."""
    files = [(r, path) for r in _local(package) if (path := package.file(r.path)) is not None]
    stated = [(r, path, r.sha256.lower()) for r, path in files if r.sha256 is not None]
    wrong = [f"{r.where}: {shown(r.path)} does not have the stated sha256"
             for r, path, sha256 in stated if sha256_of(path) != sha256]  # fmt: skip
    text = f"{counted(len(stated), 'file')} with the stated sha256, {len(files) - len(stated)} without one"
    return few(wrong) or Outcome("passed", text)


@archive_check("archive.remote", DEGRADES, order=11, breaks="it only works with a network",
               fix="Put the files into the package.")  # fmt: skip
def local(package: Package) -> str | None:
    """Files in the package rather than on a server."""
    remote = few([reference.label for reference in package.remote])
    return f"on a server, and not downloaded here: {remote}" if remote else None


def sha256_of(path: Path) -> str:
    """Return the sha256 sum of a file as 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_array(path: Path) -> Any:
    """Memory-map an .npy file; `ValueError` if it is not a plain array of the size that its header states."""
    import numpy as np

    try:
        with np.errstate(all="ignore"):  # shapes beyond 64 bits
            array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy parses Python literals here, which may fail in any way
        why = f"cannot be read as a plain array: {one_sentence(error, 120)}"
        raise ValueError("is not an .npy file" if "magic string" in str(error) else why) from None
    n_bytes = path.stat().st_size - array.offset
    if n_bytes != array.nbytes or n_bytes > MAX_TENSOR_BYTES:
        shape, most = one_sentence(array.shape, 80), MAX_TENSOR_BYTES >> 30
        raise ValueError(f"has {n_bytes} of {array.nbytes} bytes for the shape {shape}; at most {most} GiB are read")
    return array


@archive_check("archive.tensors", BLOCKS, order=13,
               breaks="reading them fails or fills the memory, or they test nothing",
               fix="Write it again with numpy.save, as a plain array of finite numbers.")  # fmt: skip
def tensors(package: Package) -> Outcome:
    """Test tensors that are plain arrays of finite numbers, of the size that their headers state."""
    import numpy as np

    problems, tested = list[str](), {r.path for r in package.references if "test_" in r.where} & package.named.keys()
    for name in sorted(tested):
        try:
            array = read_array(package.named[name])
        except ValueError as error:
            problems.append(f"{shown(name)} {error}")
            continue
        # comparisons with these pass for any output
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            problems.append(f"{shown(name)} holds values that are not finite numbers")
        elif not array.size:
            problems.append(f"{shown(name)} holds no values: its shape is {array.shape}")
    status: Status = "failed" if problems else "passed"
    return Outcome(status, few(problems) or f"{counted(len(tested), 'array')} of the size that the header states")


class _PickleError(ValueError):
    """A problem with a file, and its fix."""


class _CodeError(_PickleError):
    """Loading the file may run code."""


@archive_check("archive.pickles", BLOCKS, order=12, breaks="loading the weights could run arbitrary code",
               fix=f"{_FIX_CODE} Save TorchScript with torch.jit.save.")  # fmt: skip
def pickles(package: Package) -> Outcome:
    """Weights that hold numbers, and no code."""
    weights = {r.path: r.where.split(".")[1] for r in package.references
               if re.fullmatch(r"weights\.\w+\.source", r.where)}  # fmt: skip
    errors, n_scanned = dict[str, _PickleError](), 0
    for name, path in package.named.items():
        try:
            n_scanned += scan(path, weights.get(name, ""))
        except _PickleError as error:
            errors[name] = error
    if not errors:
        return Outcome("passed", f"{counted(n_scanned, 'file')} with pickles, all of them plain weights")
    texts = [f"{shown(name)} {errors[name].args[0]}" for name in sorted(errors, key=lambda name: name not in weights)]
    fix = " ".join(dict.fromkeys(error.args[1] for error in errors.values()))
    broken = [weights[name] for name in errors if name in weights]  # programs do not load other files
    is_code = any(isinstance(error, _CodeError) for error in errors.values())  # then the whole model is suspect
    return Outcome("failed" if broken else "warning", few(texts), fix, concerns=() if is_code else broken)


def scan(path: Path, weights_format: str) -> bool:
    """Return whether a file holds pickles; `_PickleError` if one is harmful or cannot be judged."""
    with path.open("rb") as file:
        head = file.read(MAX_PICKLE_BYTES)
    is_pickle, is_zip = _PICKLE.match(head) is not None, head.startswith(b"PK\x03\x04")
    how = _HOW_TO_SAVE.get(weights_format, "")
    if not (how or is_pickle or (not weights_format and path.suffix.lower() in _SUFFIXES)):
        return False
    if how and not is_zip and not (is_pickle and weights_format != "torchscript"):
        raise _damaged(weights_format, "it does not begin like a file written by torch")
    try:
        contents = _pickles_in(path) if is_zip else [head]
    except Exception as error:  # zipfile and the decompressors may raise anything
        raise _damaged(weights_format, one_sentence(error, 120)) from None
    if how and contents == []:
        raise _damaged(weights_format, "it is a zip of other files")
    actual = "torchscript" if contents is None else "pytorch_state_dict"
    if how and weights_format != actual:
        text = f"is {_CALLED[actual]}, not {_CALLED[weights_format]}, which the description claims"
        raise _PickleError(text, f"Describe it under weights.{actual}, or write it again with {how}.")
    for content in contents or ():
        _scan_pickle(content, weights_format)
    return True


def _pickles_in(path: Path) -> list[bytes] | None:
    """Return the pickles in a zip; None for TorchScript, which only torch.jit.load reads, by names in its own code."""
    with open_zip(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return None
        entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".pkl")]
        if (n_bytes := sum(entry.file_size for entry in entries)) > MAX_PICKLE_BYTES:
            raise ValueError(f"its pickles have {n_bytes} bytes, at most {MAX_PICKLE_BYTES} are read")
        return [archive.read(entry) for entry in entries]


def _damaged(weights_format: str, why: str) -> _PickleError:
    how = _HOW_TO_SAVE.get(weights_format, _SAVE)
    return _PickleError(f"is damaged: {why}", f"Download the file again, or write it again with {how}.")


def _scan_pickle(content: bytes, weights_format: str) -> None:
    """Compare the imports of consecutive pickles, listed by torch's own scan, to what ``weights_only=True`` accepts."""
    from torch._weights_only_unpickler import _get_allowed_globals, get_globals_in_pkl

    file, names = io.BytesIO(content), set[str]()
    for index in range(_LEGACY_PICKLES):
        if index and not (content.startswith(_LEGACY) or _PICKLE.match(content, file.tell())):
            break
        try:
            names |= get_globals_in_pkl(file)
        except Exception as error:  # of any kind: such a pickle may do anything
            if "Unsupported operand" not in str(error):
                raise _damaged(weights_format, "its pickle is incomplete") from None
            text = "is a pickle that torch.load(weights_only=True) cannot read, so it may hold anything"
            raise _CodeError(text, f"Save a plain state_dict with {_SAVE}, without pickle_protocol.") from None
    unknown = sorted(names - _get_allowed_globals().keys())
    if not all(map(_NUMPY.fullmatch, unknown)):
        text = f"is a pickle that calls or builds {few(list(map(shown, unknown)))}, which is code, not weights"
        raise _CodeError(text, _FIX_CODE)
    if unknown and weights_format:
        key = _KEY_OF_TENSORS.search(content)
        tensors = f"checkpoint[{key[1].decode()!r}]" if key else "model.state_dict()"
        text = "holds NumPy numbers or arrays beside the tensors, which torch.load(weights_only=True) refuses"
        raise _PickleError(text, f"Save the tensors alone: torch.save({tensors}, ...).")
