"""deploy/nginx/llmis.conf as a real nginx runs it, with addresses and files of the test."""

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, free_port, wait_for

SAMPLE = ROOT / "deploy" / "nginx" / "llmis.conf"
_MAIN = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 512; }}
http {{
    access_log off;
    {temporary}
    include {folder}/llmis.conf;
}}
"""
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
binary = next(
    (
        path
        for path in (ROOT / "var/nginx/usr/sbin/nginx", Path("/usr/sbin/nginx"))
        if path.exists()
    ),
    None,
)


@dataclass
class Nginx:
    port: int
    http_port: int
    folder: Path

    @property
    def tls(self) -> ssl.SSLContext:
        """Trusts its certificate, and no other."""
        return ssl.create_default_context(cafile=str(self.folder / "cert.pem"))

    def log(self) -> str:
        return (self.folder / "access.log").read_text()


def command(folder: Path, *arguments: str) -> list[str]:
    assert binary is not None, "tests/install-deploy-tools brings nginx"
    return [str(binary), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf", *arguments]


def configure(folder: Path, upstream_port: int) -> Nginx:
    """Write a configuration whose server is that of the sample."""
    nginx = Nginx(free_port(), free_port(), folder)
    _make_certificate(folder)
    replaced = {
        "127.0.0.1:8000": f"127.0.0.1:{upstream_port}",
        "listen 80;": f"listen 127.0.0.1:{nginx.http_port};",
        "listen 443 ssl": f"listen 127.0.0.1:{nginx.port} ssl",
        "/etc/ssl/llmis/fullchain.pem": f"{folder}/cert.pem",
        "/etc/ssl/llmis/privkey.pem": f"{folder}/key.pem",
        "/var/log/nginx/llmis.log": f"{folder}/access.log",
    }
    text = SAMPLE.read_text()
    for there, here in replaced.items():
        assert there in text, there
        text = text.replace(there, here)
    (folder / "llmis.conf").write_text(text)
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in _TEMPORARY)
    user = f"user {folder.owner()};" if os.geteuid() == 0 else ""
    main = _MAIN.format(folder=folder, temporary=temporary, user=user)
    (folder / "nginx.conf").write_text(main)
    return nginx


@contextmanager
def running(folder: Path, upstream_port: int) -> Iterator[Nginx]:
    nginx = configure(folder, upstream_port)
    process = subprocess.Popen(command(folder))
    try:
        wait_for(lambda: _listens(nginx.port), "nginx listens")
        yield nginx
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _make_certificate(folder: Path) -> None:
    openssl = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=llmis test", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"),
    ]
    subprocess.run(openssl, check=True, capture_output=True)
