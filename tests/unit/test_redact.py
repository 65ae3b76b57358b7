"""Secrets leave command lines before anything is written; everything else stays."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from agentwatch import abi, decoding
from agentwatch.errors import UsageError
from agentwatch.events import Exec
from agentwatch.sinks.redact import Redactor
from agentwatch.testing import Records

SECRET = "hunter2Hunter2hunter2X"

# (argv with S for the secret, the same as it is to be written with _ for what was taken out)
TAKEN_OUT = [
    (("x", "--password", "S"), ("x", "--password", "_")),
    (("x", "--password=S"), ("x", "--password=_")),
    (("x", "--db-password", "S"), ("x", "--db-password", "_")),
    (("x", "-password", "S"), ("x", "-password", "_")),
    (("x", "--TOKEN=S"), ("x", "--TOKEN=_")),
    (("x", "--api-key", "S", "rest"), ("x", "--api-key", "_", "rest")),
    (("x", "--client-secret=S"), ("x", "--client-secret=_")),
    (("mysql", "-uroot", "-pS", "db"), ("mysql", "-uroot", "-p_", "db")),
    (("/usr/bin/mysqldump", "-pS"), ("/usr/bin/mysqldump", "-p_")),
    (("sudo", "-u", "x", "mysql", "-pS"), ("sudo", "-u", "x", "mysql", "-p_")),
    (("curl", "-u", "bob:S", "u"), ("curl", "-u", "bob:_", "u")),
    (("curl", "-ubob:S"), ("curl", "-ubob:_")),
    (("curl", "--user=bob:S"), ("curl", "--user=bob:_")),
    (("sshpass", "-p", "S", "ssh", "h"), ("sshpass", "-p", "_", "ssh", "h")),
    (("docker", "login", "-p", "S"), ("docker", "login", "-p", "_")),
    (("redis-cli", "-a", "S"), ("redis-cli", "-a", "_")),
    (("curl", "-H", "Authorization: Bearer S"), ("curl", "-H", "Authorization: Bearer _")),
    (("curl", "-H", "authorization: Basic S"), ("curl", "-H", "authorization: Basic _")),
    (("curl", "-H", "X-Api-Key: S"), ("curl", "-H", "X-Api-Key: _")),
    (("curl", "-H", "PRIVATE-TOKEN: S"), ("curl", "-H", "PRIVATE-TOKEN: _")),
    (("git", "clone", "https://bob:S@h/x"), ("git", "clone", "https://bob:_@h/x")),
    (("psql", "postgres://u:S@h:5432/d"), ("psql", "postgres://u:_@h:5432/d")),
    (("curl", "https://h/?token=S&x=1"), ("curl", "https://h/?token=_&x=1")),
    (("env", "API_TOKEN=S", "x"), ("env", "API_TOKEN=_", "x")),
    (("env", "DB_PASSWORD=S and more"), ("env", "DB_PASSWORD=_")),
    (("x", "AWS_SECRET_ACCESS_KEY=S"), ("x", "AWS_SECRET_ACCESS_KEY=_")),
    (("sh", "-c", "MY_KEY=S make; ls"), ("sh", "-c", "MY_KEY=_ make; ls")),
    (("bash", "-lc", "export PASSWORD='S S' x"), ("bash", "-lc", "export PASSWORD=_ x")),
    (("sh", "-c", "mysql -pS db"), ("sh", "-c", "mysql -p_ db")),
    (("sh", "-c", "x --token 'S S' y"), ("sh", "-c", "x --token _ y")),
    (("ssh", "h", "sh -c 'x --token S'"), ("ssh", "h", "sh -c 'x --token _'")),
    (("curl", "-d", '{"password": "S"}'), ("curl", "-d", '{"password": "_"}')),
    (("curl", "-su", "bob:S", "u"), ("curl", "-su", "bob:_", "u")),
    (("curl", "-fsSLu", "bob:S", "u"), ("curl", "-fsSLu", "bob:_", "u")),
    (("curl", "-subob:S", "u"), ("curl", "-subob:_", "u")),
    (("sh", "-c", "curl -su bob:S h"), ("sh", "-c", "curl -su bob:_ h")),
    (("curl", "-H", "apikey: S"), ("curl", "-H", "apikey: _")),
    (("curl", "-H", "X-Custom-Token: S"), ("curl", "-H", "X-Custom-Token: _")),
    (("curl", "-sH", "X-Custom-Token: S"), ("curl", "-sH", "X-Custom-Token: _")),
    (("curl", "-HX-My-Token: S"), ("curl", "-HX-My-Token: _")),
    (("wget", "--header=X-Auth: S"), ("wget", "--header=X-Auth: _")),
    (("wget", "--header", "X-Auth: S"), ("wget", "--header", "X-Auth: _")),
    (("sh", "-c", "curl -H 'apikey: S' h"), ("sh", "-c", "curl -H 'apikey: _' h")),
    (("curl", "-b", "sid=S", "u"), ("curl", "-b", "sid=_", "u")),
    (("curl", "--cookie", "sid=S"), ("curl", "--cookie", "sid=_")),
    (("curl", "--cookie=sid=S"), ("curl", "--cookie=sid=_")),
    (("curl", "https://h/?api-key=S"), ("curl", "https://h/?api-key=_")),
    (("curl", "https://h/?a=1&x-token=S"), ("curl", "https://h/?a=1&x-token=_")),
    (("curl", "-d", "api-key=S"), ("curl", "-d", "api-key=_")),
    (("curl", "-x", "u:S@p:8080", "h"), ("curl", "-x", "u:_@p:8080", "h")),
    (("curl", "--proxy=u:S@p", "h"), ("curl", "--proxy=u:_@p", "h")),
    (("curl", "-x", "http://u:S@p", "h"), ("curl", "-x", "http://u:_@p", "h")),
    (("env", "PASS=S", "x"), ("env", "PASS=_", "x")),
    (("env", "KEY=S", "x"), ("env", "KEY=_", "x")),
    (("env", "AUTH=S", "x"), ("env", "AUTH=_", "x")),
    (("env", "PAT=S", "x"), ("env", "PAT=_", "x")),
    (("env", "SSHPASS=S", "sshpass", "-e"), ("env", "SSHPASS=_", "sshpass", "-e")),
    (("sh", "-c", "PASS=S x; PAT=S y"), ("sh", "-c", "PASS=_ x; PAT=_ y")),
    (("sh", "-c", "SSHPASS='S' x"), ("sh", "-c", "SSHPASS=_ x")),
    (
        ("aws", "configure", "set", "aws_secret_access_key", "S"),
        ("aws", "configure", "set", "aws_secret_access_key", "_"),
    ),
    (
        ("aws", "configure", "set", "profile.x.aws_session_token", "S"),
        ("aws", "configure", "set", "profile.x.aws_session_token", "_"),
    ),
    (
        ("npm", "config", "set", "//npm.example.org/:_authToken", "S"),
        ("npm", "config", "set", "//npm.example.org/:_authToken", "_"),
    ),
    (
        ("npm", "config", "set", "//npm.example.org/:_authToken=S"),
        ("npm", "config", "set", "//npm.example.org/:_authToken=_"),
    ),
    (("kubectl", "create", "--from-literal=p=S"), ("kubectl", "create", "--from-literal=p=_")),
    (("kubectl", "x", "--from-literal", "p=S"), ("kubectl", "x", "--from-literal", "p=_")),
    (("openssl", "enc", "-k", "S"), ("openssl", "enc", "-k", "_")),
    (("openssl", "enc", "-K", "S", "-iv", "0"), ("openssl", "enc", "-K", "_", "-iv", "0")),
    (("az", "login", "-u", "bob", "-p", "S"), ("az", "login", "-u", "bob", "-p", "_")),
    (("twine", "upload", "-p", "S", "f"), ("twine", "upload", "-p", "_", "f")),
    (("vault", "login", "S"), ("vault", "login", "_")),
    (("vault", "login", "-no-print", "S"), ("vault", "login", "-no-print", "_")),
    (("cargo", "login", "S"), ("cargo", "login", "_")),
    (("python3", "-c", "password = 'S'"), ("python3", "-c", "password = '_'")),
    (("python3", "-c", 'x(api_key = "S")'), ("python3", "-c", 'x(api_key = "_")')),
    (("sh", "-c", "echo token = S >> f"), ("sh", "-c", "echo token = _ >> f")),
    (("mysql", "-e", "SET PASSWORD = 'S'"), ("mysql", "-e", "SET PASSWORD = '_'")),
    (("psql", "-c", "ALTER USER u PASSWORD 'S'"), ("psql", "-c", "ALTER USER u PASSWORD '_'")),
    (("mysql", "-e", "IDENTIFIED BY 'S'"), ("mysql", "-e", "IDENTIFIED BY '_'")),
    (("ldapsearch", "-xw", "S", "-b", "dc=x"), ("ldapsearch", "-xw", "_", "-b", "dc=x")),
    (("ldapsearch", "-x", "-wS", "-s", "sub"), ("ldapsearch", "-x", "-w_", "-s", "sub")),
    (("ssh-keygen", "-N", "S", "-f", "k"), ("ssh-keygen", "-N", "_", "-f", "k")),
    (("ssh-keygen", "-p", "-P", "S", "-N", "S"), ("ssh-keygen", "-p", "-P", "_", "-N", "_")),
    (("x", "--password", "-S"), ("x", "--password", "_")),
    (("x", "--token", "--S-1x"), ("x", "--token", "_")),
    (("x", "--password=-S"), ("x", "--password=_")),
    (("mysql", "-p-S"), ("mysql", "-p_")),
    (("ssh-keygen", "-N", "-S"), ("ssh-keygen", "-N", "_")),
    (("keytool", "-storepass", "S"), ("keytool", "-storepass", "_")),
    (("gh", "secret", "set", "X", "--body", "S"), ("gh", "secret", "set", "X", "--body", "_")),
    (("gh", "secret", "set", "X", "--body=S"), ("gh", "secret", "set", "X", "--body=_")),
    (("openssl", "x", "-passin", "pass:S"), ("openssl", "x", "-passin", "pass:_")),
    (("x", "AKIAIOSFODNN7EXAMPLE"), ("x", "AKIA_")),
    (("x", "sk-ant-api03-S-S"), ("x", "sk-ant-api03-_")),
    (("x", "sk-proj-S"), ("x", "sk-proj-_")),
    (("x", "ghp_S"), ("x", "ghp_")),
    (("x", "github_pat_S"), ("x", "github_pat_")),
    (("x", "xoxb-12345678-S"), ("x", "xoxb-_")),
    (("x", "glpat-S"), ("x", "glpat-_")),
    (("x", "npm_S"), ("x", "npm_")),
    (("x", "eyJhbGciOiJIUzI1NiJ9.S.S"), ("x", "eyJ_")),
    (("x", "-----BEGIN RSA PRIVATE KEY-----\nS\n"), ("x", "-----BEGIN RSA PRIVATE KEY-----_")),
]

LEFT_ALONE = [
    ("git", "commit", "-m", "feature/maintenance: tokenizer"),
    ("git", "push", "origin", "main"),
    ("npm", "install", "@scope/package@1.2.3"),
    ("x", "--max-tokens", "4096", "--password-stdin", "--token-file", "f", "--tokenizer", "t"),
    ("docker", "run", "-p", "8080:80", "image"),
    ("mkdir", "-p", "/srv/x"),
    ("ssh", "-p", "2222", "dev@host"),
    ("ssh", "-o", "PasswordAuthentication=no", "host"),
    ("curl", "-u", "bob", "https://host:8080/path@v1"),
    ("env", "PWD=/home/dev", "OLDPWD=/tmp", "SSH_AUTH_SOCK=/run/x", "ls"),
    ("python3", "-c", "print('key')"),
    ("git", "commit", "-m", "fix token parser"),
    ("git", "commit", "-m", "key: value, auth: none"),
    ("x", "--keyfile", "/etc/key.pem", "--keyfile=/etc/key.pem"),
    ("sort", "-k2", "-t", ":", "f"),
    ("ssh", "-p", "22", "host"),
    ("mkdir", "-p", "x"),
    ("ls", "--color=auto"),
    ("curl", "-so", "user:file", "-H", "Accept: text/html", "-x", "proxy:8080", "-b", "jar.txt"),
    ("kubectl", "get", "pods", "-o", "json", "--from-literal"),
    ("openssl", "x509", "-in", "cert.pem", "-key", "k.pem", "-noout"),
    ("az", "vm", "list", "-p", "x"),
    ("cargo", "build", "--release"),
    ("npm", "config", "set", "registry", "https://registry.example.org/"),
    ("vault", "status"),
    ("aws", "configure", "set", "region", "eu-west-1"),
    ("ldapsearch", "-x", "-b", "dc=x", "-s", "sub"),
    ("ssh-keygen", "-t", "ed25519", "-f", "k"),
    ("python3", "-c", "if token == 'x': print(secret)"),
    ("x", "--password", "--host", "h", "--token", "-v"),
    ("gh", "pr", "create", "-b", "what it does"),
    ("x", "--password"),
    ("x", ""),
    (),
]


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor.load()


@pytest.mark.parametrize(("argv", "expected"), TAKEN_OUT, ids=[" ".join(a) for a, _ in TAKEN_OUT])
def test_a_secret_is_taken_out(
    redactor: Redactor, argv: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """The secret is gone, and flag, name or kind stay to be read."""
    marked = tuple(fill(token) for token in argv)
    found = redactor.argv(marked)
    assert found == tuple(show(token) for token in expected)
    assert not any(SECRET in token for token in found)


def fill(token: str) -> str:
    """`S` as a word of its own (or the rest of one) stands for the secret."""
    return re.sub(r"(?<![A-Z])S(?![A-Z])", SECRET, token)


def show(token: str) -> str:
    token = re.sub(r"(ghp|github_pat|npm)_$", r"\1_[redacted]", token)
    return re.sub(
        r"(?<![A-Za-z])_(?![A-Za-z])|(?<=eyJ)_|(?<=AKIA)_|(?<=-[pw])_", "[redacted]", token
    )


@pytest.mark.parametrize("argv", LEFT_ALONE, ids=" ".join)
def test_an_ordinary_command_line_is_left_alone(redactor: Redactor, argv: tuple[str, ...]) -> None:
    """What looks like a flag or a token but is none is written as it is."""
    assert redactor.argv(argv) == argv


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("x", "AKIAIO"), "AKIA[redacted]"),
        (("x", "ghp_a"), "ghp_[redacted]"),
        (("x", "sk-ant-ab"), "sk-ant-[redacted]"),
        (("curl", "https://bob:hun"), "https://bob:[redacted]"),
        (("x", "--token=hu"), "--token=[redacted]"),
        (("x", "--token", "hu"), "[redacted]"),
        (("x", "Authorization: Bearer h"), "Authorization: Bearer [redacted]"),
        (("env", "A_TOKEN=h"), "A_TOKEN=[redacted]"),
        (("mysql", "-ph"), "-p[redacted]"),
    ],
)
def test_a_secret_that_was_cut_is_taken_out_as_far_as_it_is_there(
    redactor: Redactor, argv: tuple[str, ...], expected: str
) -> None:
    """The end of a cut argv is judged by how a secret begins."""
    assert redactor.argv(argv, cut=True)[-1] == expected


def test_a_record_is_rewritten_with_everything_else_kept(redactor: Redactor) -> None:
    """Only argv (and the name as asked) change; fields, argc and other strings stay."""
    raw = Records().exec("/usr/bin/curl", ("curl", "-u", f"bob:{SECRET}", "http://h"), uid=7)
    clean = bytes(redactor.record(raw))
    assert SECRET.encode() not in clean
    before, after = decoding.decode(raw), decoding.decode(clean)
    assert isinstance(before, Exec)
    assert isinstance(after, Exec)
    assert after.argv == ("curl", "-u", "bob:[redacted]", "http://h")
    names = set(Exec.__dataclass_fields__) - {"argv"}
    assert {n: getattr(after, n) for n in names} == {n: getattr(before, n) for n in names}


def test_a_cut_record_keeps_its_shape(redactor: Redactor) -> None:
    """A last token without its end stays without one."""
    raw = Records().exec("/bin/x", ("x", "--token", "hun"), cut=True)
    _, strings = abi.unpack(bytes(redactor.record(raw)))
    assert strings["argv"] == b"x\0--token\0[redacted]"
    whole = Records().exec("/bin/x", ("x", "--token", "hun"))
    _, strings = abi.unpack(bytes(redactor.record(whole)))
    assert strings["argv"] == b"x\0--token\0[redacted]\0"


def test_a_record_without_secrets_is_the_very_same(redactor: Redactor) -> None:
    """Nothing is copied where nothing is to be done, and other kinds are not looked at."""
    make = Records()
    for raw in (make.exec("/bin/ls", ("ls", "-l")), make.open("/a?token=b"), make.exit()):
        assert redactor.record(raw) is raw


def test_a_record_of_nothing_but_secrets_still_fits(redactor: Redactor) -> None:
    """4 KiB of one-byte secrets grow, and the record holds them."""
    argv = ("mysql", *("-pa",) * 1000)
    after = decoding.decode(bytes(redactor.record(Records().exec("/bin/mysql", argv))))
    assert isinstance(after, Exec)
    assert after.argv == ("mysql", *("-p[redacted]",) * 1000)


def test_bytes_that_are_no_text_survive(redactor: Redactor) -> None:
    """argv is bytes: what is no UTF-8 comes out as it went in."""
    odd = "\udcff\udc80 x"
    assert redactor.argv((odd, "--token", odd)) == (odd, "--token", "[redacted]")


def test_text_of_other_kinds_is_redacted(redactor: Redactor) -> None:
    """Names as asked for and URLs go through the same patterns."""
    assert redactor.text(f"https://u:{SECRET}@h/") == "https://u:[redacted]@h/"
    assert redactor.text("/home/dev/notes") == "/home/dev/notes"


def test_redacting_twice_changes_nothing(redactor: Redactor) -> None:
    """The replacement is no secret itself."""
    for argv, _ in TAKEN_OUT:
        once = redactor.argv(tuple(fill(token) for token in argv))
        assert redactor.argv(once) == once


def test_a_hostile_argv_takes_linear_time(redactor: Redactor) -> None:
    """4 KiB made to send a backtracking matcher round and round take milliseconds."""
    for evil in ("a" * 4000 + "=", '"' * 4000, "\\" * 4000, "https://" + "a:" * 2000, "-" * 4000):
        begin = time.perf_counter()
        redactor.argv(("sh", "-c", f"x --token {evil}"))
        assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize("text", ["flags: [", "flags: 5", "tokens: []", "[]"])
def test_a_broken_pattern_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    """No traceback for a file that is no list of patterns; the message names it."""
    path = tmp_path / "redact.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"redact\.yaml"):
        Redactor.load(path)
    with pytest.raises(UsageError, match=r"nothing\.yaml"):
        Redactor.load(tmp_path / "nothing.yaml")
