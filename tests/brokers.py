"""Real brokers for tests, and certificates made on the fly."""

import contextlib
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

CONFIGURATION = """
listener {port} {host}
allow_anonymous true
persistence false
set_tcp_nodelay true
log_type error
"""


def free_port() -> int:
    """A port that no connection is given by chance, while its broker is yet to start or was killed and comes back: those are above 32767.

    Each test's random numbers are seeded alike in every worker; the system's are not.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Mosquitto:
    """A broker in a folder of its own that can be killed, frozen and started again on the same port.

    `within` is the beginning of its command line, such as that of a network namespace.
    """

    def __init__(self, folder: Path, configuration: str = CONFIGURATION, *, host: str = "127.0.0.1", within: tuple[str, ...] = ()) -> None:
        self.host, self.port = host, free_port()
        self.url = f"mqtt://{host}:{self.port}"
        self._within = within
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text(configuration.format(port=self.port, host=host))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([*self._within, "/usr/sbin/mosquitto", "-c", str(self._configuration)])
        for port in re.findall(r"^listener (\d+)", self._configuration.read_text(), re.MULTILINE):
            self._wait_for(int(port))

    def _wait_for(self, port: int) -> None:
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection((self.host, port), timeout=1):
                return
            time.sleep(0.02)
        raise TimeoutError("mosquitto did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """Signs certificates in a folder of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key, self.certificate = folder / f"{name}.key", folder / f"{name}.pem"
        request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        _openssl(*request, "-keyout", str(self._key), "-out", str(self.certificate))

    def sign(self, name: str, *, days: int = 2) -> tuple[Path, Path]:
        """A certificate and its key for `name` at 127.0.0.1; fewer than 0 days make it expired."""
        key, request, certificate = (self._folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        extension = self._folder / f"{name}.ext"
        extension.write_text("subjectAltName=IP:127.0.0.1\n")
        asked = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"]
        _openssl(*asked, "-keyout", str(key), "-out", str(request))
        signed = ["x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial"]
        _openssl(*signed, "-days", str(days), "-extfile", str(extension), "-out", str(certificate))
        return certificate, key
