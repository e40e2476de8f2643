"""What our agent sends, byte for byte, beside what azure-iot-device sends in the same situation, both recorded by the
hub. Every difference is listed in DIFFERENCES; one that is not listed, and one that is no more, is a failure.
The same list is the table in docs/protocol.md.
"""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, MethodResponse, ProvisioningDeviceClient, X509
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod

import packets
from harness import Checks, Hub, equal, eventually

DOCUMENT = os.path.join(os.path.dirname(__file__), "../../docs/protocol.md")

CONNECTS = ["connect, key", "connect, certificate", "connect, module"]
SPACED = ("JSON without spaces", "JSON with a space after , and :", "spaces are billed")
RID = ("hex-hex", "a UUID", "opaque to the hub; a random number of the process and a counter cannot repeat across restarts")

# (situation, what): (the agent's, the SDK's, why)
DIFFERENCES = {
    **{(connect, what): difference for connect in CONNECTS for what, difference in {
        "keep alive": (240, 60, "`cloud.keep_alive`: an idle gateway pays for each ping; the hub allows up to 1177 s"),
        "user name: DeviceClientType": ("fwupdate/..", "azure-iot-device-iothub-py/..", "each names itself"),
        "user name: api-version": ("2021-04-12", "2019-10-01", "the newest that Azure documents for MQTT"),
    }.items()},
    ("read the twin", "payload"): ("b''", "b' '", "the documented body is empty"),
    ("read the twin", "request id"): RID,
    ("report", "payload"): SPACED,
    ("report", "request id"): RID,
    ("answer a method", "payload"): SPACED,
    ("provision: connect", "clean session"): (1, 0, "a registration takes seconds; nothing of it is to outlive its session"),
    ("provision: connect", "keep alive"): (240, 60, "`cloud.keep_alive`, as towards the hub"),
    ("provision: connect", "password: order"): (
        ["sr", "sig", "se", "skn"], ["sr", "sig", "se"], "Azure documents `skn=registration` as part of the token"),
    ("provision: connect", "user name: ClientVersion"): (
        "fwupdate/..", "azure-iot-device-provisioning-py/..", "each names itself"),
    ("provision: register", "payload"): SPACED,
    ("provision: register", "request id"): ("hex", "a UUID", "opaque to the service; one session asks one question at a time"),
    ("provision: ask for the state", "payload"): ("b''", "b' '", "the documented body is empty"),
    ("provision: ask for the state", "request id"): ("hex", "a UUID", "the same"),
    ("reconnect", "subscriptions made again"): (
        ["$iothub/methods/POST/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/twin/res/#"], [],
        "the SDK counts on the hub to remember them; we count on nothing"),
}


class Recorder:
    """A hub that records, and what was said to it."""

    def __init__(self, program):
        self.hub = Hub(program)
        os.environ["REQUESTS_CA_BUNDLE"] = self.hub.ca
        self.service = IoTHubRegistryManager.from_connection_string(self.hub.service)

    def admin(self, method, path):
        url = f"https://{self.hub.address}:{self.hub.https_port}/admin/{path}"
        with urllib.request.urlopen(urllib.request.Request(url, method=method), context=self.hub.tls()) as answer:
            return answer.read()

    def start(self):
        self.admin("PUT", "trace")

    def said(self):
        """Every packet that came from devices since the start, in order."""
        frames = json.loads(self.admin("GET", "trace"))
        return [packets.read(bytes.fromhex(frame["bytes"])) for frame in frames if frame["fromDevice"]]

    def wait(self, kind, what=lambda packet: True):
        """All that was said, once a packet like this is among it."""
        def found():
            said = self.said()
            return said if any(p["packet"] == kind and what(p) for p in said) else None
        return eventually(found, 60)

    def drop(self):
        self.admin("DELETE", "connections")

    def invoke(self, name, device, module=None):
        method = CloudToDeviceMethod(method_name=name, payload={}, connect_timeout_in_seconds=30)
        if module:
            return self.service.invoke_device_module_method(device, module, method)
        return self.service.invoke_device_method(device, method)

    def certificate(self, name):
        """A self-signed certificate, its key, and the registration of a device that has it."""
        certificate, key = os.path.join(self.hub.dir, name + ".pem"), os.path.join(self.hub.dir, name + ".key")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj"
        command = [*command.split(), f"/CN={name}", "-out", certificate, "-keyout", key]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with open(certificate) as file:
            thumbprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read())).hexdigest()
        self.service.create_device_with_x509(name, thumbprint, thumbprint, "enabled")
        return certificate, key

    def module(self, device, module):
        self.service.create_module_with_sas(device, module, "", "", "")
        lines = self.hub.device("list").splitlines()
        return next(line.split()[-1] for line in lines if f"DeviceId={device};ModuleId={module}" in line)


class Agent:
    """The real fwupdated. There is no bootloader here, so it can update nothing; it says so, and talks to the hub."""

    def __init__(self, recorder, program, text, *more):
        self.dir = os.path.join(recorder.hub.dir, "agent-" + hashlib.sha1(repr([text, more]).encode()).hexdigest()[:8])
        for folder in ["state", "run", "keys"]:
            os.makedirs(os.path.join(self.dir, folder))
        settings = [
            'compatible = "board"', "[cloud]", *([f'connection_string = "{text}"'] if text else []),
            f'ca_file = "{recorder.hub.ca}"',
            'reconnect_first = "1s"', 'reconnect_longest = "1s"', *more,
            "[slots]", f'a.device = "{self.dir}/a"', f'b.device = "{self.dir}/b"',
            "[bootloader]", 'kind = "grub"', f'grubenv = "{self.dir}/grubenv"', "[trust]", f'keys = "{self.dir}/keys"',
            "[state]", f'dir = "{self.dir}/state"', "[system]", f'run = "{self.dir}/run"',
        ]
        path = os.path.join(self.dir, "fwupdate.toml")
        with open(path, "w") as file:
            file.write("\n".join(settings) + "\n")
        os.chmod(path, 0o600)
        self.log = open(os.path.join(self.dir, "log"), "wb")
        self.process = subprocess.Popen([program, "--config", path], stdout=self.log, stderr=self.log)

    def stop(self):
        self.process.terminate()
        equal(self.process.wait(timeout=20), 0)


# -- what is compared --


def of(said, kind, start=""):
    """The one packet of this kind whose topic or first filter begins so."""
    def key(packet):
        return packet.get("topic") or next(iter(packet.get("filters", [])), [""])[0]
    return next(packet for packet in said if packet["packet"] == kind and key(packet).startswith(start))


def connect(packet, identity):
    """A CONNECT, taken apart as far as the hub does."""
    # The provisioning service takes no question mark.
    user, _, query = packet["user name"].replace("/api-version=", "/?api-version=").partition("?")
    parts = {name: value for name, value in packet.items() if name not in ("user name", "password", "packet")}
    parts["client id"] = parts["client id"].replace(identity, "{id}")
    parts["user name"] = user.replace(identity, "{id}")
    for name, value in urllib.parse.parse_qsl(query):
        # Whose it is, without version and machine.
        parts["user name: " + name] = value.split("/")[0] + "/.." if name in ("DeviceClientType", "ClientVersion") else value
    parts["user name: order"] = [name for name, _ in urllib.parse.parse_qsl(query)]
    if packet["password"] is None:
        parts["password"] = "none"
        return parts
    kind, _, fields = packet["password"].partition(" ")
    fields = [field.split("=", 1) for field in fields.split("&")]
    parts["password"] = kind
    parts["password: order"] = [name for name, _ in fields]
    parts["password: sr"] = dict(fields)["sr"].replace(urllib.parse.quote(identity, safe=""), "{id}")
    # The rest differs from second to second; the hub verified the signature, or it had refused the connection.
    return parts


def request_id(topic):
    """The topic without its request id, and the shape of that."""
    head, _, tail = topic.partition("$rid=")
    tail = re.sub("operationId=.*", "operationId=..", tail)
    rid = re.match(r"[^&]*", tail).group()
    shape = "a UUID" if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", rid) else re.sub(r"[0-9a-f]+", "hex", rid)
    return head + "$rid=.." + tail[len(rid):], shape


def published(packet, own_request):
    topic, shape = request_id(packet["topic"])
    parts = {"topic": topic, "qos": packet["qos"], "retain": packet["retain"], "duplicate": packet["duplicate"]}
    parts["payload"] = payload(packet["payload"])
    if own_request:
        parts["request id"] = shape
    return parts


def payload(data):
    """JSON by its spacing, for what it says is made equal beforehand; all else as it is."""
    try:
        value = json.loads(data)
    except ValueError:
        return repr(data)
    compact = json.dumps(value, separators=(",", ":")).encode()
    return "JSON without spaces" if len(compact) == len(data) else "JSON with a space after , and :"


def subscriptions(said):
    wanted = [packet for packet in said if packet["packet"] == "SUBSCRIBE"]
    filters = sorted(filter for packet in wanted for filter in packet["filters"])
    return {"filters": filters, "filters in a packet": sorted({len(packet["filters"]) for packet in wanted})}


def after_reconnect(said):
    topics = [request_id(packet["topic"])[0] for packet in said if packet["packet"] == "PUBLISH"]
    subscribed = sorted(packet["filters"][0][0] for packet in said if packet["packet"] == "SUBSCRIBE")
    return {"subscriptions made again": subscribed, "first publish": topics[0]}


# -- the situations --


def lives(recorder, program):
    """Both clients go through the same life; returns situation -> (agent's, SDK's)."""
    found = {}
    ours = recorder.hub.device("add", "agent")
    recorder.start()
    agent = Agent(recorder, program, ours)
    recorder.wait("PUBLISH", lambda p: "PATCH/properties/reported" in p["topic"])
    recorder.invoke("firmwareStatus", "agent")
    said_by_agent = recorder.wait("PUBLISH", lambda p: "methods/res" in p["topic"])
    recorder.start()
    recorder.drop()
    agent_again = recorder.wait("PUBLISH")
    recorder.start()
    agent.stop()
    agent_bye = recorder.wait("DISCONNECT")

    patch = of(said_by_agent, "PUBLISH", "$iothub/twin/PATCH")["payload"]
    answer = of(said_by_agent, "PUBLISH", "$iothub/methods/res")["payload"]
    theirs = recorder.hub.device("add", "their")
    recorder.start()
    client = IoTHubDeviceClient.create_from_connection_string(theirs, server_verification_cert=recorder.hub.ca_text)
    client.on_method_request_received = lambda request: client.send_method_response(
        MethodResponse.create_from_method_request(request, 200, json.loads(answer)))
    client.on_twin_desired_properties_patch_received = lambda patch: None
    client.connect()
    client.get_twin()
    client.patch_twin_reported_properties(json.loads(patch))
    recorder.invoke("firmwareStatus", "their")
    said_by_sdk = recorder.wait("PUBLISH", lambda p: "methods/res" in p["topic"])
    recorder.start()
    recorder.drop()
    sdk_again = recorder.wait("PUBLISH")
    recorder.start()
    client.shutdown()
    sdk_bye = recorder.wait("DISCONNECT")

    both = said_by_agent, said_by_sdk
    found["connect, key"] = tuple(
        connect(of(said, "CONNECT"), identity) for said, identity in zip(both, ["agent", "their"]))
    found["subscribe"] = tuple(subscriptions(said) for said in both)
    for situation, start, own in [("read the twin", "$iothub/twin/GET", True), ("report", "$iothub/twin/PATCH", True),
                                  ("answer a method", "$iothub/methods/res", False)]:
        found[situation] = tuple(published(of(said, "PUBLISH", start), own) for said in both)
    found["reconnect"] = tuple(after_reconnect(said) for said in (agent_again, sdk_again))
    found["leave"] = tuple({"packets": [p["packet"] for p in said]} for said in (agent_bye, sdk_bye))
    return found


def with_a_certificate(recorder, program):
    certificate, key = recorder.certificate("agent-x")
    recorder.start()
    agent = Agent(recorder, program, f"HostName={recorder.hub.address};DeviceId=agent-x;x509=true",
                  f'certificate_file = "{certificate}"', f'key_file = "{key}"')
    ours = of(recorder.wait("CONNECT"), "CONNECT")
    recorder.wait("PUBLISH")
    agent.stop()
    certificate, key = recorder.certificate("their-x")
    recorder.start()
    client = IoTHubDeviceClient.create_from_x509_certificate(
        X509(certificate, key), recorder.hub.address, "their-x", server_verification_cert=recorder.hub.ca_text)
    client.connect()
    theirs = of(recorder.wait("CONNECT"), "CONNECT")
    client.shutdown()
    return {"connect, certificate": (connect(ours, "agent-x"), connect(theirs, "their-x"))}


def as_a_module(recorder, program):
    ours, theirs = recorder.module("agent", "updater"), recorder.module("their", "updater")
    recorder.start()
    agent = Agent(recorder, program, ours)
    agents = of(recorder.wait("CONNECT"), "CONNECT")
    recorder.wait("PUBLISH")
    agent.stop()
    recorder.start()
    client = IoTHubModuleClient.create_from_connection_string(theirs, server_verification_cert=recorder.hub.ca_text)
    client.connect()
    sdks = of(recorder.wait("CONNECT"), "CONNECT")
    client.shutdown()
    return {"connect, module": (connect(agents, "agent"), connect(sdks, "their"))}


def registered(said):
    """A conversation with the provisioning service: CONNECT, SUBSCRIBE, the request, the first question for its state."""
    puts = published(of(said, "PUBLISH", "$dps/registrations/PUT"), True)
    return connect(of(said, "CONNECT"), "gw-by-key"), subscriptions(said), puts


def through_provisioning(recorder, program):
    line = recorder.hub.enrollment("add", "gw-by-key", "--polls", "1")
    fields = dict(field.split("=", 1) for field in line.split(";"))
    service = ["[cloud.dps]", f'id_scope = "{fields["IdScope"]}"', 'registration_id = "gw-by-key"',
               f'symmetric_key = "{fields["SymmetricKey"]}"', f'endpoint = "{recorder.hub.address}"']
    asked = lambda packet: "iotdps-get-operationstatus" in packet.get("topic", "")
    recorder.start()
    agent = Agent(recorder, program, None, *service)
    ours = recorder.wait("PUBLISH", asked)
    recorder.wait("PUBLISH", lambda packet: packet["topic"].startswith("$iothub/twin"))
    agent.stop()
    recorder.hub.enrollment("set", "gw-by-key", "--polls", "1")
    recorder.start()
    ProvisioningDeviceClient.create_from_symmetric_key(
        recorder.hub.address, "gw-by-key", fields["IdScope"], fields["SymmetricKey"],
        server_verification_cert=recorder.hub.ca_text).register()
    theirs = recorder.wait("PUBLISH", asked)
    pairs = zip(registered(ours), registered(theirs))
    found = dict(zip(["provision: connect", "provision: subscribe", "provision: register"], pairs))
    found["provision: ask for the state"] = tuple(
        published(of(said, "PUBLISH", "$dps/registrations/GET"), True) for said in (ours, theirs))
    return found


SITUATIONS = [lives, with_a_certificate, as_a_module, through_provisioning]


def differences(found):
    """(situation, what): (agent's, SDK's) for all that differs."""
    differing = {}
    for situation, (ours, theirs) in found.items():
        for what in sorted(set(ours) | set(theirs)):
            if ours.get(what) != theirs.get(what):
                differing[situation, what] = (ours.get(what), theirs.get(what))
    return differing


def shown(value):
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{value}`"


def table():
    lines = ["| situation | what | agent | azure-iot-device | why |", "|---|---|---|---|---|"]
    for (situation, what), (ours, theirs, why) in DIFFERENCES.items():
        lines.append(f"| {situation} | {what} | {shown(ours)} | {shown(theirs)} | {why} |")
    return "\n".join(lines)


def every_difference_is_known(found):
    seen = differences(found)
    known = {key: (ours, theirs) for key, (ours, theirs, _) in DIFFERENCES.items()}
    unknown = {key: value for key, value in seen.items() if known.get(key) != value}
    gone = {key: value for key, value in known.items() if key not in seen}
    assert not unknown and not gone, f"unknown: {json.dumps(list(unknown.items()), indent=1)}\nno more: {gone}"


def every_difference_is_explained():
    with open(DOCUMENT) as file:
        assert table() in file.read(), f"docs/protocol.md does not hold this table:\n{table()}"


def an_unknown_difference_is_noticed(found):
    ours, theirs = found["subscribe"]
    try:
        every_difference_is_known({**found, "subscribe": ({**ours, "filters": ours["filters"][1:]}, theirs)})
    except AssertionError:
        return
    raise AssertionError("a subscription less was not noticed")


def main():
    recorder, checks = Recorder(sys.argv[1]), Checks()
    program = os.path.join(os.path.dirname(sys.argv[1]), "fwupdated")
    found = {}
    try:
        for situation in SITUATIONS:
            checks.run("trace: " + situation.__name__.replace("_", " "),
                       lambda: found.update(situation(recorder, program)))
        for check, arguments in [(every_difference_is_known, [found]), (an_unknown_difference_is_noticed, [found]),
                                 (every_difference_is_explained, [])]:
            checks.run("trace: " + check.__name__.replace("_", " "), check, *arguments)
        if checks.failed:
            print("the hub's log:", recorder.hub.log(), sep="\n")
    finally:
        recorder.hub.close()
    return checks.verdict()


if __name__ == "__main__":
    sys.exit(main())
