"""`az` as the pages' commands meet it in a test: Microsoft's own parser judges each command, and what a stand-in can
do is done.

Azure itself is out of reach, so a command goes one of these ways:

- `az storage` on a container or a blob runs for real, against Azurite.
- A command of the extension `azure-iot`, which is on no package registry, is parsed by OPTIONS, taken from Microsoft's
  reference of it; what it asks of a hub is asked of the stand-in by the same REST. Where the extension itself lies in
  AZURE_EXTENSION_DIR (`make quickstart`), its own code parses and runs instead, with `--login`.
- All others are parsed by azure-cli and end there. Where the page needs an answer, ANSWERS has it in Azure's form.

The test gives what is answered in the environment (PAGE_*), and reads in PAGE_LOG which commands came.
"""

import argparse
import base64
import hashlib
import hmac
import io
import json
import os
import re
import sys
import time
import urllib.parse

import jmespath
import requests
from azure.cli.core import get_default_cli
from knack.events import EVENT_INVOKER_POST_PARSE_ARGS

HUB = "hub-name/n login/l resource-group/g auth-type"
DPS = "dps-name/n login/l resource-group/g auth-type"
KEYS = "auth-method/am primary-key/pk secondary-key/sk primary-thumbprint/ptp secondary-thumbprint/stp valid-days/vd output-dir/od"
# What follows `!` is required; one with `?` may come without a value.
OPTIONS = {
    "iot hub connection-string show": "hub-name/n resource-group/g policy-name/pn key-type/kt show-all/all? default-eventhub/eh? hostname-type/ht",
    "iot hub device-identity create": f"!device-id/d {HUB} {KEYS} edge-enabled/ee? status/sta status-reason/star device-scope",
    "iot hub device-identity connection-string show": f"!device-id/d {HUB} key-type/kt hostname-type/ht",
    "iot hub module-identity create": f"!device-id/d !module-id/m {HUB} {KEYS}",
    "iot hub device-twin show": f"!device-id/d {HUB}",
    "iot hub device-twin update": f"!device-id/d {HUB} etag/e add force-string? remove set desired tags",
    "iot hub invoke-device-method": f"!device-id/d !method-name/mn {HUB} method-payload/mp timeout/to",
    "iot hub message-route create": "!endpoint-name/endpoint/en !hub-name/n !route-name/route/rn !source-type/type/t "
    "condition/c enabled/e resource-group/g",
    "iot dps enrollment-group create": f"!enrollment-id/eid/group-id/gid {DPS} allocation-policy/ap api-version/av "
    "iot-hubs/ih webhook-url/wh root-ca-name/ca-name/cn certificate-path/cp primary-key/pk secondary-ca-name/scn "
    "secondary-certificate-path/scp secondary-key/sk edge-enabled/ee? initial-twin-properties/props "
    "initial-twin-tags/tags provisioning-status/ps reprovision-policy/rp",
    "iot dps enrollment-group compute-device-key": f"!registration-id/rid {DPS} enrollment-id/eid/group-id/gid symmetric-key/key",
}
ANY = "output/o query subscription only-show-errors? debug? verbose?"


def given(name):
    return os.environ.get(f"PAGE_{name}", "")


class Hub:
    """The REST that the extension calls, by the service's connection string."""

    def __init__(self, text):
        fields = dict(field.split("=", 1) for field in text.split(";"))
        self.host, self.policy, self.key = (fields[name] for name in ("HostName", "SharedAccessKeyName", "SharedAccessKey"))

    def token(self):
        resource, expiry = urllib.parse.quote_plus(self.host), int(time.time()) + 300
        mac = hmac.new(base64.b64decode(self.key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
        signature = urllib.parse.quote_plus(base64.b64encode(mac))
        return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={self.policy}"

    def ask(self, method, path, body=None):
        url = f"https://{self.host}{path}?api-version=2024-03-31"
        answer = requests.request(method, url, json=body, headers={"Authorization": self.token()}, timeout=120)
        if not answer.ok:
            sys.exit(f"ERROR: {answer.status_code}: {answer.text}")
        return answer.json()


def create_device(hub, options):
    body = {"deviceId": options.device_id, "status": "enabled", "authentication": {"type": "sas", "symmetricKey": {}}}
    return hub.ask("PUT", f"/devices/{options.device_id}", body)


def show_connection_string(hub, options):
    key = hub.ask("GET", f"/devices/{options.device_id}")["authentication"]["symmetricKey"]["primaryKey"]
    host = hub.host.split(":")[0]
    return {"connectionString": f"HostName={host};DeviceId={options.device_id};SharedAccessKey={key}"}


def invoke(hub, options):
    # The extension sends the number as a text.
    body = {"methodName": options.method_name, "payload": json.loads(options.method_payload or "{}")}
    body.update(responseTimeoutInSeconds=options.timeout or "30", connectTimeoutInSeconds=options.timeout or "30")
    return hub.ask("POST", f"/twins/{options.device_id}/methods", body)


def show_twin(hub, options):
    return hub.ask("GET", f"/twins/{options.device_id}")


def device_key(options):
    key = options.symmetric_key or given("GROUP_KEY")
    mac = hmac.new(base64.b64decode(key), options.registration_id.encode(), hashlib.sha256).digest()
    return base64.b64encode(mac).decode()


ON_THE_HUB = {
    "iot hub device-identity create": create_device,
    "iot hub device-identity connection-string show": show_connection_string,
    "iot hub invoke-device-method": invoke,
    "iot hub device-twin show": show_twin,
}
ANSWERS = {
    "account show": lambda _: {"name": "Pay as you go", "state": "Enabled"},
    "ad signed-in-user show": lambda _: {"id": "00000000-0000-0000-0000-000000000001"},
    "group show": lambda _: {"id": "/subscriptions/0/resourceGroups/fwupdate"},
    "storage account show-connection-string": lambda _: {"connectionString": given("BLOBS")},
    "iot hub connection-string show": lambda _: {"connectionString": given("SERVICE")},
    "iot dps show": lambda _: {"properties": {"idScope": given("ID_SCOPE"), "state": "Active"}},
    "iot dps enrollment-group compute-device-key": device_key,
}
# These go to the store; with `--auth-mode login` only Azure's would know the caller.
STORE = ["storage container create", "storage blob upload", "storage blob generate-sas"]


def name_of(words):
    name = []
    for word in words:
        if word.startswith("-"):
            break
        name.append(word)
    return " ".join(name)


class Parsed(BaseException):
    """Ends a command once azure-cli has understood all of it. No Exception, for those it would report as failures."""


def understood(_, args=None, **kwargs):
    raise Parsed(args)


def parse(words):
    """By azure-cli, whose complaint is the test's failure."""
    cli = get_default_cli()
    cli.register_event(EVENT_INVOKER_POST_PARSE_ARGS, understood)
    try:
        sys.exit(cli.invoke(words) or 2)
    except Parsed as parsed:
        return parsed.args[0]


def parse_by_reference(name, words):
    parser = argparse.ArgumentParser(prog=f"az {name}", allow_abbrev=False)
    for option in f"{OPTIONS[name]} {ANY}".split():
        names = option.strip("!?").split("/")
        # As in Microsoft's own tables: a short name has one letter and one dash.
        flags = [("-" if len(each) == 1 else "--") + each for each in names]
        optional = {"nargs": "?", "const": "true"} if option.endswith("?") else {}
        parser.add_argument(*flags, dest=names[0].replace("-", "_"), required=option.startswith("!"), **optional)
    return parser.parse_args(words[len(name.split()):])


def with_login(words):
    """The hub's name tells the extension to look it up at Azure; the connection string tells where it is."""
    at = next(place for place, word in enumerate(words) if word in ("--hub-name", "-n"))
    return [*words[:at], "--login", given("SERVICE"), *words[at + 2 :]]


def show(answer, words):
    """As --query and --output say, by the same library as az."""
    shape = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shape.add_argument("--query")
    shape.add_argument("--output", "-o", default="json")
    wanted, _ = shape.parse_known_args(words)
    if wanted.query:
        answer = jmespath.search(wanted.query, answer)
    if wanted.output == "tsv":
        values = answer.values() if isinstance(answer, dict) else [answer]
        print("\t".join("" if value is None else str(value) for value in values))
    elif wanted.output != "none":
        print(json.dumps(answer, indent=2))


def run(words):
    name = name_of(words)
    real = bool(os.environ.get("AZURE_EXTENSION_DIR"))
    with open(given("LOG"), "a") as log:
        print(name, file=log)
    if name in STORE and "login" not in words and not given("PARSE_ONLY"):
        return get_default_cli().invoke(words)
    if name in ON_THE_HUB and real and not given("PARSE_ONLY"):
        said = io.StringIO()
        status = get_default_cli().invoke(with_login(words), out_file=said)
        # The stand-in's port is not 443, and a device's HostName has none.
        print(re.sub(r"(HostName=[^:;]*):\d+", r"\1", said.getvalue()), end="")
        return status
    options = parse_by_reference(name, words) if name in OPTIONS and not real else parse(words)
    if given("PARSE_ONLY"):
        return 0
    if name in ON_THE_HUB:
        show(ON_THE_HUB[name](Hub(given("SERVICE")), options), words)
    elif name in ANSWERS:
        show(ANSWERS[name](options), words)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
