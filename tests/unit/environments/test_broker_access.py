"""Logging in at a real Mosquitto by TLS, users, client certificates and access lists, in both protocols; each refusal is told in words.

The broker has a listener for each way in. The agent's side and the robot's side must say the same.
"""

import asyncio
import contextlib
import json
import logging
import random
import select
import socket
import ssl
import subprocess
from types import SimpleNamespace

import aiomqtt
import pytest
from brokers import Authority, Mosquitto, free_port
from devices import change

from agentd.clock import SystemClock
from agentd.device import Broker, Device
from agentd.device.connection import connection_arguments
from agentd.environments import Joined, Linked, make_environment
from agentd.errors import PlantError

PASSWORD = "pa/ss:wo@rd"
QUOTED = "pa%2Fss%3Awo%40rd"

DEVICES = "agentd/v1/devices"

CONFIGURATION = """
user root
per_listener_settings true
persistence false
log_type error

listener {{port}} 127.0.0.1
allow_anonymous false
password_file {folder}/users
acl_file {folder}/access
certfile {server}
keyfile {server_key}

listener {expired} 127.0.0.1
allow_anonymous true
certfile {old}
keyfile {old_key}

listener {mutual} 127.0.0.1
allow_anonymous false
require_certificate true
use_identity_as_username true
cafile {ca}
certfile {server}
keyfile {server_key}

listener {plain} 127.0.0.1
allow_anonymous true

listener {dynamic} 127.0.0.1
allow_anonymous false
plugin /usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so
plugin_opt_config_file {folder}/dynamic.json
"""

ACCESS = """
user runner
topic readwrite agentd/v1/agents/cartpole/#
topic read agentd/v1/devices/+/up/#
topic write agentd/v1/devices/+/down/#

user arm
topic read agentd/v1/devices/arm/down/#
topic write agentd/v1/devices/arm/up/#

user deaf
topic write agentd/v1/agents/cartpole/status
"""


class Impatient(random.Random):
    """Notes each longest pause that was asked for, and has none."""

    def __init__(self):
        super().__init__(1)
        self.pauses = []

    def uniform(self, a, b):
        self.pauses.append(b)
        return 0.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = Authority(folder, "ours"), Authority(folder, "others")
    return SimpleNamespace(
        folder=folder,
        ca=ours.certificate,
        other_ca=others.certificate,
        server=ours.sign("server"),
        old=ours.sign("old", days=-1),
        client=ours.sign("runner"),
        old_client=ours.sign("old-runner", days=-1),
        other_client=others.sign("stranger"),
    )


@pytest.fixture
def broker(tmp_path, certificates):
    for position, user in enumerate(("runner", "arm", "deaf")):
        flags = ["-b", *(["-c"] if position == 0 else [])]
        subprocess.run(["/usr/bin/mosquitto_passwd", *flags, str(tmp_path / "users"), user, PASSWORD], check=True, capture_output=True)
    (tmp_path / "access").write_text(ACCESS)
    subprocess.run(
        ["/usr/bin/mosquitto_ctrl", "dynsec", "init", str(tmp_path / "dynamic.json"), "admin", PASSWORD], check=True, capture_output=True
    )
    security = json.loads((tmp_path / "dynamic.json").read_text())
    (admin,) = security["clients"]
    sends = [("publishClientSend", "#"), ("publishClientReceive", "#")]
    for name, hears in {"mute": (), "choosy": (f"{DEVICES}/+/up/status", f"{DEVICES}/arm/#")}.items():
        acls = [*sends, *(("subscribePattern", topic) for topic in hears)]
        acls = [{"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind, topic in acls]
        security["clients"].append(admin | {"username": name, "roles": [{"rolename": name}]})
        security["roles"].append({"rolename": name, "acls": acls})
    (tmp_path / "dynamic.json").write_text(json.dumps(security))
    ports = {name: free_port() for name in ("expired", "mutual", "plain", "dynamic")}
    (server, server_key), (old, old_key) = certificates.server, certificates.old
    words = {"folder": tmp_path, "ca": certificates.ca, "server": server, "server_key": server_key, "old": old, "old_key": old_key}
    made = Mosquitto(tmp_path, CONFIGURATION.format(**ports, **words))
    made.ports = ports
    made.start()
    yield made
    made.kill()


@pytest.fixture
def make_agent(make_spec):
    tables = {
        "kind": "mqtt",
        "observation_space": {"low": -10.0, "high": 10.0, "shape": [1]},
        "action_space": {"discrete": 2},
        "safe_action": {"value": 0},
    }

    def make(address):
        spec = make_spec(environment=tables)
        return make_environment(spec, session="agent-1", broker=address, clock=SystemClock(), generator=Impatient())

    return make


@contextlib.asynccontextmanager
async def robot(address, **options):
    def on_step(action):
        return [1.0], float(action), False, False, {}

    device = Device(address, "arm", agent="cartpole", on_reset=lambda _: [0.0], on_step=on_step, fallback=0, **options)
    running = asyncio.create_task(device.run())
    try:
        yield device
    finally:
        device.stop()
        async with asyncio.timeout(20):
            await running


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
async def test_user_password_and_authority_let_both_sides_in_over_tls(broker, make_agent, certificates, tmp_path, protocol):
    (tmp_path / "password").write_text(PASSWORD + "\n")
    query = f"ca_file={certificates.ca}&protocol={protocol}"
    at = f"127.0.0.1:{broker.port}"
    async with (
        make_agent(f"mqtts://runner@{at}?{query}&password_file={tmp_path / 'password'}") as environment,
        robot(f"mqtts://arm:{QUOTED}@{at}?{query}"),
    ):
        device = (await change(environment, Joined)).device
        first = await device.reset("e1", None, 3)
        rewards = []
        while not first.last:
            first = await device.step(1, revision="r", safe=False)
            rewards.append(first.reward)
        assert rewards == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
async def test_client_certificates_let_both_sides_in(broker, make_agent, certificates, protocol):
    certificate, key = certificates.client
    address = f"mqtts://127.0.0.1:{broker.ports['mutual']}?ca_file={certificates.ca}&certificate_file={certificate}&key_file={key}"
    address += f"&protocol={protocol}"
    async with make_agent(address) as environment, robot(address):
        device = (await change(environment, Joined)).device
        assert (await device.reset("e1", None, 1)).tick == 0
        assert (await device.step(1, revision="r", safe=False)).truncated


def refusals(broker, certificates):
    """What is wrong with an address, and what must be said of it."""
    ca, at = f"ca_file={certificates.ca}", f"127.0.0.1:{broker.port}"
    mutual = f"mqtts://127.0.0.1:{broker.ports['mutual']}?{ca}"
    old, stranger = (f"&certificate_file={one[0]}&key_file={one[1]}" for one in (certificates.old_client, certificates.other_client))
    return {
        "another authority": (f"mqtts://runner:{QUOTED}@{at}?ca_file={certificates.other_ca}", "the broker's certificate is not trusted"),
        "the system's authorities": (f"mqtts://runner:{QUOTED}@{at}", "the broker's certificate is not trusted"),
        "another name": (f"mqtts://runner:{QUOTED}@localhost:{broker.port}?{ca}", "certificate is not valid for 'localhost'"),
        "an expired certificate": (f"mqtts://127.0.0.1:{broker.ports['expired']}?{ca}", "certificate has expired"),
        "a wrong password": (f"mqtts://runner:wr0ng-secret@{at}?{ca}", "not authorised"),
        "a wrong password in MQTT 5": (f"mqtts://runner:wr0ng-secret@{at}?{ca}&protocol=5", "not authorised"),
        "an unknown user": (f"mqtts://nobody:{QUOTED}@{at}?{ca}", "not authorised"),
        "no user": (f"mqtts://{at}?{ca}", "not authorised"),
        "no client certificate": (mutual, "the broker refuses this client's certificate: certificate required"),
        "an expired client certificate": (mutual + old, "the broker refuses this client's certificate: certificate expired"),
        "a stranger's certificate": (mutual + stranger, "the broker refuses this client's certificate: unknown ca"),
        "no TLS where it is wanted": (f"mqtts://127.0.0.1:{broker.ports['plain']}?{ca}", "may speak no TLS on this port"),
        "TLS where it is not expected": (f"mqtt://runner:{QUOTED}@{at}", "a port for TLS needs mqtts://"),
    }


REFUSALS = [
    "another authority", "the system's authorities", "another name", "an expired certificate", "a wrong password",
    "a wrong password in MQTT 5", "an unknown user", "no user", "no client certificate", "an expired client certificate",
    "a stranger's certificate", "no TLS where it is wanted", "TLS where it is not expected",
]  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
async def test_a_refusal_is_told_once_in_words_to_both_sides(broker, make_agent, certificates, caplog, until, what):
    address, expected = refusals(broker, certificates)[what]
    async with make_agent(address) as environment, robot(address, generator=Impatient()) as device:
        told = await change(environment, Linked)
        assert not told.connected
        assert expected in told.reason
        await until(lambda: expected in device.trouble)
    everything = caplog.text + told.reason + device.trouble
    assert PASSWORD not in everything
    assert "wr0ng-secret" not in everything


def test_the_alert_that_says_why_is_told_though_the_broker_has_closed_before_the_first_message(broker, certificates):
    address, _ = refusals(broker, certificates)["no client certificate"]
    with (
        socket.create_connection(("127.0.0.1", broker.ports["mutual"]), timeout=20) as plain,
        connection_arguments(address)["tls_context"].wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        closed = select.poll()
        closed.register(secure, select.POLLRDHUP)
        assert closed.poll(20_000)
        with pytest.raises(ssl.SSLError, match="alert certificate required"):
            secure.send(b"CONNECT")


async def test_a_broker_that_closes_instead_of_answering_is_noticed_at_once(until):
    async def close(reader, writer):
        await reader.read(1)
        writer.close()

    port = free_port()
    async with (
        await asyncio.start_server(close, "127.0.0.1", port),
        asyncio.timeout(4),  # less than connecting may take
        robot(f"mqtt://127.0.0.1:{port}", generator=Impatient()) as device,
    ):
        await until(lambda: device.trouble)
        assert "closed the connection before it answered" in device.trouble


@pytest.mark.parametrize("answers", [1, 2], ids=["as it subscribes", "as it says that it is ready"])
async def test_a_broker_that_closes_after_it_let_a_client_in_is_noticed_at_once(until, answers):
    async def answer(reader, writer):
        for _ in range(answers):
            said = await reader.read(1000)  # whole: the client waits for each answer
            writer.write(b"\x20\x02\0\0" if said[0] == 0x10 else b"\x90\x04" + said[2:4] + b"\0\1")
        await reader.read(1000)
        writer.close()

    port = free_port()
    async with (
        await asyncio.start_server(answer, "127.0.0.1", port),
        robot(f"mqtt://127.0.0.1:{port}", generator=Impatient()) as device,
    ):
        await until(lambda: device.trouble)
        assert "the broker ended the connection" in device.trouble  # not that time ran out


async def test_a_refused_client_asks_again_after_pauses_that_grow(broker, make_agent, certificates, until):
    generator = Impatient()
    address, _ = refusals(broker, certificates)["a wrong password"]
    async with make_agent(address) as environment, robot(address, generator=generator):
        await until(lambda: min(len(generator.pauses), len(environment._random.pauses)) > 7)
        environment_pauses = environment._random.pauses
    for pauses in (generator.pauses, environment_pauses):
        assert pauses[:7] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_two_robots_of_one_name_which_end_each_others_connections_are_told_so_and_pause(broker, until):
    address = f"mqtt://127.0.0.1:{broker.ports['plain']}"
    generators = Impatient(), Impatient()
    async with robot(address, generator=generators[0]) as one, robot(address, generator=generators[1]):
        await until(lambda: one.counts["disconnected"] > 3)
        assert generators[0].pauses[:3] == [0.2, 0.4, 0.8]
        await until(lambda: "another one may have the name arm" in one.trouble)


async def test_a_broker_that_lets_nobody_else_hear_is_told(broker, make_agent):
    address = f"mqtt://mute:{QUOTED}@127.0.0.1:{broker.ports['dynamic']}"
    async with make_agent(address) as environment:
        told = await change(environment, Linked)
    assert "refuses to let this client hear agentd/v1/devices/+/up/status" in told.reason


async def test_a_device_that_may_not_be_heard_is_told_and_the_others_are_driven_all_the_same(broker, make_agent, caplog, until):
    address = f"mqtt://choosy:{QUOTED}@127.0.0.1:{broker.ports['dynamic']}"
    async with aiomqtt.Client("127.0.0.1", broker.ports["dynamic"], username="choosy", password=PASSWORD) as client:

        async def say(device):
            status = {"status": "ready", "session": "s1", "agent": "cartpole"}
            await client.publish(f"{DEVICES}/{device}/up/status", json.dumps(status), qos=1)

        with caplog.at_level(logging.WARNING):
            async with make_agent(address) as environment:
                assert (await change(environment, Linked)).connected
                await say("leg")
                await until(lambda: environment.counters.dropped["refused"])
                await say("arm")
                assert (await change(environment, Joined)).device.id == "arm"
    assert "device leg can't be driven: the broker's access list refuses to let this client hear" in caplog.text


async def test_a_message_that_the_access_list_refuses_is_counted_and_logged_where_the_protocol_tells(
    broker, make_agent, certificates, caplog, until
):
    address = f"mqtts://deaf:{QUOTED}@127.0.0.1:{broker.port}?ca_file={certificates.ca}&protocol=5"
    with caplog.at_level(logging.WARNING):
        async with make_agent(address) as environment:
            await until(lambda: environment.counters.dropped["refused"])
    assert "the broker refuses what this agent publishes: Not authorized" in caplog.text


async def test_a_certificate_that_was_renewed_is_used_by_the_next_connection(broker, make_agent, certificates, tmp_path, until):
    mine, key = tmp_path / "mine.pem", tmp_path / "mine.key"
    for source, target in zip(certificates.old_client, (mine, key), strict=True):
        target.write_bytes(source.read_bytes())
    address = f"mqtts://127.0.0.1:{broker.ports['mutual']}?ca_file={certificates.ca}&certificate_file={mine}&key_file={key}"
    async with make_agent(address) as environment:
        assert "certificate expired" in (await change(environment, Linked)).reason
        for source, target in zip(certificates.client, (mine, key), strict=True):
            target.write_bytes(source.read_bytes())
        await until(lambda: environment.connected)


@pytest.mark.parametrize(
    ("address", "mistakes"),
    [
        ("http://broker", ["has the form mqtt://host:port"]),
        ("mqtt://broker:99999", ["the port is a number up to 65535"]),
        ("mqtt://broker/topic", ["nothing may follow the port"]),
        ("mqtt://u:s3cret/x@broker", ["port is a number"]),
        ("mqtt://u:42?s3cret=7@broker", ["knows no option; there are protocol"]),
        ("mqtt://u:42?s3cret@broker", ["nothing may follow the port but ?options; a user or a password with /, ? or # has it as %2F"]),
        (
            "mqtt://:s3cret@broker?protocol=4&ca_file=/ca&colour=red&key_file=",
            [
                "protocol should be 3.1.1 or 5",
                "ca_file is for mqtts",
                "no option colour",
                "key_file is empty",
                "needs certificate_file",
                "no user",
            ],
        ),
        ("mqtts://u:s3cret@broker?password_file=/x", ["a password and a password_file"]),
    ],
)
def test_an_address_tells_all_its_mistakes_at_once_and_no_password(address, mistakes):
    with pytest.raises(ValueError) as raised:
        Broker.parse(address)
    assert all(mistake in str(raised.value) for mistake in mistakes)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ca_file={folder}/none.pem", "ca_file {folder}/none.pem holds no usable certificate"),
        ("ca_file={folder}/ours.key", "ca_file {folder}/ours.key holds no usable certificate"),
        ("certificate_file={folder}/runner.pem&key_file={folder}/server.key", "key values mismatch"),
        ("password_file={folder}/none", "password_file {folder}/none can't be read: No such file or directory"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_before_anything_starts(certificates, make_agent, query, expected):
    with pytest.raises(PlantError, match=expected.format(folder=certificates.folder)):
        make_agent("mqtts://user@broker?" + query.format(folder=certificates.folder))


def test_a_broker_shows_no_password():
    assert "s3cret" not in repr(Broker.parse("mqtts://u:s3cret@broker"))
