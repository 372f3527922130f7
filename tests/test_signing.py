"""A signature says who made a package: by the right key and of these files, or it is refused; it survives push and pull."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdzoo.errors import EnvironmentProblem, IntegrityError, KdzooError, UsageError
from kdzoo.export import signing
from kdzoo.export.package import MANIFEST, PULLED, Package
from kdzoo.export.publish import push
from kdzoo.export.pull import pull
from kdzoo.export.signing import SIGNATURE, sign, verify_signature
from kdzoo.tests.hub_server import Hub, own_warnings, serve
from kdzoo.zoo.files import sha256
from kdzoo.zoo.reference import Reference

pytest.importorskip("cryptography", reason="it comes with model_signing")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

EXTRA = "signatures need the extra supply-chain: pip install -e '.[supply-chain]'"
pytestmark = [own_warnings, pytest.mark.skipif(find_spec("model_signing") is None, reason=EXTRA)]
NAME = "org/name"
Call = Callable[..., tuple[str, str]]
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def write_key(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: str = "") -> Path:
    """`name.pem` and `name.pub`; gives the path of the first."""
    lock = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    (folder / f"{name}.pem").write_bytes(key.private_bytes(PEM, PKCS8, lock))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the key `mine`, another one, and one with a password."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, password in (("mine", ""), ("other", ""), ("locked", "open sesame")):
        write_key(folder, name, ec.generate_private_key(ec.SECP256R1()), password)
    return folder


@pytest.fixture
def signed(package_copy: Package, keys: Path) -> Package:
    sign(package_copy, keys / "mine.pem")
    return package_copy


def exit_code(call: Call, *words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        call(*words)
    return int(ended.value.code or 0)


def test_who_has_the_public_key_can_verify_and_the_library_alone_says_the_same(signed: Package, keys: Path, call: Call) -> None:
    found = json.loads(call("verify", signed.folder, "--public-key", keys / "mine.pub", "--json")[0])["signature"]
    assert found["manifest_sha256"] == sha256(signed.folder / MANIFEST) and found["by"] == "key"
    assert "the manifest is signed with" in call("verify", signed.folder, "--public-key", keys / "mine.pub")[0]
    assert "--public-key proves by whom" in call("verify", signed.folder)[1], "a signature that nobody looks at is told"
    command = [sys.executable, "-m", "model_signing", "verify", "key", MANIFEST]
    command += ["--signature", SIGNATURE, "--public_key", str(keys / "mine.pub")]
    alone = subprocess.run(command, cwd=signed.folder, capture_output=True, text=True, check=False)
    assert alone.returncode == 0 and "Verification succeeded" in alone.stdout, alone.stderr


def test_another_key_is_refused_and_the_words_say_so(signed: Package, keys: Path, call: Call) -> None:
    with pytest.raises(IntegrityError, match=r"was not made with the private half of .*other\.pub"):
        verify_signature(signed, public_key=keys / "other.pub")
    assert exit_code(call, "verify", signed.folder, "--public-key", keys / "other.pub") == 6


def test_a_package_without_a_signature_is_refused_where_one_is_asked_for(package_copy: Package, keys: Path, call: Call) -> None:
    assert exit_code(call, "verify", package_copy.folder, "--public-key", keys / "mine.pub") == 6
    with pytest.raises(IntegrityError, match=r"is not signed: there is no model\.sig") as caught:
        verify_signature(package_copy, public_key=keys / "mine.pub")
    assert "ask who published it" in caught.value.hint, "who asks for a signature is not the one to sign"
    assert json.loads(call("verify", package_copy.folder, "--json")[0])["signature"] is None


@pytest.mark.parametrize("name", ["model.fp32.onnx", "labels.txt"])
def test_a_changed_file_is_seen_though_the_signature_is_of_the_manifest(signed: Package, keys: Path, call: Call, name: str) -> None:
    content = bytearray((signed.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (signed.folder / name).write_bytes(content)
    (signed.folder / PULLED).write_text('{"schema_version": 1, "files": []}')  # what nobody signs excuses nothing
    assert exit_code(call, "verify", signed.folder, "--public-key", keys / "mine.pub") == 6


def test_a_changed_manifest_is_seen_even_if_the_signature_is_told_of_it(signed: Package, keys: Path) -> None:
    manifest, signature = signed.folder / MANIFEST, signed.folder / SIGNATURE
    before = sha256(manifest)
    manifest.write_bytes(manifest.read_bytes().replace(b'"verified": true', b'"verified": false'))
    assert sha256(manifest) != before
    with pytest.raises(IntegrityError, match="changed or replaced after signing"):
        verify_signature(signed, public_key=keys / "mine.pub")
    bundle = json.loads(signature.read_bytes())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(before.encode(), sha256(manifest).encode())
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature.write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match="was not made with"):
        verify_signature(signed, public_key=keys / "mine.pub")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"dsseEnvelope": {"payload": "e30="}}'])
def test_a_damaged_signature_is_an_integrity_error(signed: Package, keys: Path, content: str) -> None:
    (signed.folder / SIGNATURE).write_text(content)
    with pytest.raises(IntegrityError, match="is damaged, or is no signature"):
        verify_signature(signed, public_key=keys / "mine.pub")


def test_an_encrypted_key_wants_its_password(
    package_copy: Package, keys: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sign", package_copy.folder, "--private-key", keys / "locked.pem")
    assert exit_code(call, *words) == 2 and exit_code(call, *words, "--password", "wrong") == 2
    assert not (package_copy.folder / SIGNATURE).exists()
    monkeypatch.setenv("KDZOO_KEY_PASSWORD", "open sesame")
    out, err = call(*words)
    assert out.strip() == str(package_copy.folder / SIGNATURE) and "--public-key" in err
    verify_signature(package_copy, public_key=keys / "locked.pub")


def test_keys_that_cannot_be_used_are_usage_errors_with_the_line_that_makes_one(package_copy: Package, keys: Path) -> None:
    write_key(keys, "rsa", rsa.generate_private_key(65537, 2048))
    (keys / "noise.pem").write_text("noise")
    for name in ("rsa.pem", "noise.pem", "absent.pem", "mine.pub"):
        with pytest.raises(UsageError, match=name) as caught:
            sign(package_copy, keys / name)
        assert "openssl ecparam" in caught.value.hint
    with pytest.raises(UsageError, match=r"mine\.pem"):
        verify_signature(package_copy, public_key=keys / "mine.pem")
    assert not (package_copy.folder / SIGNATURE).exists()


def test_what_is_broken_or_not_whole_is_not_signed(package_copy: Package, keys: Path) -> None:
    (package_copy.folder / PULLED).write_text('{"schema_version": 1, "files": ["labels.txt"]}')
    onnx = package_copy.folder / "model.fp32.onnx"
    onnx.rename(package_copy.folder.parent / "elsewhere")
    with pytest.raises(UsageError, match="pulled in part"):
        sign(package_copy, keys / "mine.pem")
    (package_copy.folder / PULLED).unlink()
    (package_copy.folder.parent / "elsewhere").rename(onnx)
    (package_copy.folder / "labels.txt").write_text("other")
    with pytest.raises(IntegrityError, match=r"labels\.txt"):
        sign(package_copy, keys / "mine.pem")
    assert not (package_copy.folder / SIGNATURE).exists()


def test_a_certificate_is_verified_by_the_root_that_it_stands_under(package_copy: Package, keys: Path, call: Call) -> None:
    def certify(name: str, issuer: str) -> None:
        private = {n: serialization.load_pem_private_key((keys / f"{n}.pem").read_bytes(), None) for n in (name, issuer)}
        names = {n: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, issuer)}
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= {"crl_sign": False, "encipher_only": False, "decipher_only": False, "key_cert_sign": name == issuer}
        builder = x509.CertificateBuilder(names[issuer], names[name], private[name].public_key(), x509.random_serial_number())  # type: ignore[arg-type]
        builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        builder = builder.not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        builder = builder.add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        builder = builder.add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        made = builder.sign(private[issuer], hashes.SHA256())  # type: ignore[arg-type]
        (keys / f"{name}.crt").write_bytes(made.public_bytes(PEM))

    write_key(keys, "root", ec.generate_private_key(ec.SECP256R1()))
    for name, issuer in (("root", "root"), ("mine", "root"), ("other", "other")):
        certify(name, issuer)
    call("sign", package_copy.folder, "--private-key", keys / "mine.pem", "--certificate", keys / "mine.crt")
    assert "a certificate under" in call("verify", package_copy.folder, "--certificate", keys / "root.crt")[0]
    assert exit_code(call, "verify", package_copy.folder, "--certificate", keys / "other.crt") == 6
    assert exit_code(call, "verify", package_copy.folder, "--public-key", keys / "mine.pub") == 6, "signed, but not by a bare key"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "home") as server:
        yield server


def test_a_signature_goes_with_push_and_pull_in_whole_in_part_and_offline(
    hub: Hub, signed: Package, keys: Path, tmp_path: Path
) -> None:
    done = push(signed.folder, NAME)
    assert done.tag is not None and "-signed-" in done.tag
    part = pull(Reference.parse(f"{NAME}@{done.tag}"), formats=("onnx",), output=tmp_path / "part").source
    assert isinstance(part, Package) and len(part.here) < len(part.document["files"])
    cached = pull(Reference.parse(NAME)).source
    again = pull(Reference.parse(NAME), offline=True).source
    for package in (part, cached, again):
        assert isinstance(package, Package) and verify_signature(package, public_key=keys / "mine.pub")


def test_an_unsigned_version_takes_the_signature_of_the_one_before_away(hub: Hub, signed: Package) -> None:
    push(signed.folder, NAME)
    (signed.folder / SIGNATURE).unlink()
    done = push(signed.folder, NAME)
    assert done.removed == (SIGNATURE,) and SIGNATURE not in hub.repositories[NAME].commits[done.commit]


def test_a_package_without_a_signature_is_asked_for_it_once(hub: Hub, package_copy: Package) -> None:
    commit = hub.add_folder(NAME, package_copy.folder)
    reference = Reference.parse(f"{NAME}@{commit}")
    pull(reference)
    assert len(hub.asked(SIGNATURE)) == 1
    hub.log.clear()
    pull(reference)
    assert not hub.log, "all of a pinned commit is in the cache, and so is that it has no signature"


def test_a_registry_in_a_folder_takes_a_signature_that_comes_later(package_copy: Package, keys: Path, tmp_path: Path) -> None:
    registry = f"file://{tmp_path / 'models' / 'org' / 'name'}"
    first = push(package_copy.folder, registry)
    sign(package_copy, keys / "mine.pem")
    later = push(package_copy.folder, registry)
    assert later.commit == first.commit and later.changed and not push(package_copy.folder, registry).changed
    for output in (None, tmp_path / "here"):
        package = pull(later.reference, output=output).source
        assert isinstance(package, Package) and verify_signature(package, public_key=keys / "mine.pub")


def test_the_packages_of_a_collection_keep_their_signatures(hub: Hub, package_of: Call, keys: Path, tmp_path: Path) -> None:
    for target in ("1", "2"):
        copy = shutil.copytree(package_of(target).folder, tmp_path / "both" / target)  # type: ignore[attr-defined]
        if target == "1":
            sign(Package.open(Path(copy)), keys / "mine.pem")
    push(tmp_path / "both", NAME)
    one, two = (pull(Reference.parse(NAME), branch=target).source for target in ("1", "2"))
    assert isinstance(one, Package) and verify_signature(one, public_key=keys / "mine.pub")
    assert isinstance(two, Package) and not (two.folder / SIGNATURE).exists()


def test_a_signature_of_another_package_is_not_published(signed: Package, package_of: Call, hub: Hub, tmp_path: Path) -> None:
    other = Path(shutil.copytree(package_of("2").folder, tmp_path / "other"))  # type: ignore[attr-defined]
    shutil.copyfile(signed.folder / SIGNATURE, other / SIGNATURE)
    with pytest.raises(IntegrityError, match="changed or replaced after signing"):
        push(other, NAME)
    assert NAME not in hub.repositories


def test_without_the_library_the_pip_line_is_told(package_copy: Package, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    actions: list[Callable[[], object]] = [
        lambda: signing.sign(package_copy, keys / "mine.pem"),
        lambda: signing.verify_signature(package_copy, public_key=keys / "mine.pub"),
    ]
    for action in actions:
        with pytest.raises(EnvironmentProblem) as caught:
            action()
        assert isinstance(caught.value, KdzooError) and "kdzoo[supply-chain]" in caught.value.hint
