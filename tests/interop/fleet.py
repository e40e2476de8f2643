"""azure-iot-hub, unmodified, against hub and agent: what a fleet's back end does with a gateway.

tests/integration/sdk.rs runs it beside a simulated gateway `gw`, which reboots as the agent asks:
`fleet.py URL_OF_2.0.0 URL_OF_3.0.0`, with the service connection string in the environment.
"""

import os
import sys

from azure.iot.hub import IoTHubConfigurationManager, IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from azure.iot.hub.protocol.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    JobProperties,
    JobRequest,
)
from msrest.exceptions import HttpOperationError

from harness import Checks, equal, eventually

DEVICE = "gw"
PATIENCE = 120


class Scene:
    """The three managers of the SDK, and what is to be installed."""

    def __init__(self, two, three):
        text = os.environ["IOTHUB_CONNECTION_STRING"]
        self.two, self.three = two, three
        self.registry = IoTHubRegistryManager.from_connection_string(text)
        self.jobs = IoTHubJobManager.from_connection_string(text)
        self.configurations = IoTHubConfigurationManager.from_connection_string(text)

    def reported(self):
        return self.registry.get_twin(DEVICE).properties.reported

    def method(self, name, payload=None):
        method = CloudToDeviceMethod(method_name=name, payload=payload, connect_timeout_in_seconds=60)
        return self.registry.invoke_device_method(DEVICE, method)

    def rows(self, query):
        specification = QuerySpecification(query=query)
        return self.registry.protocol.query.get_twins(specification, raw=True).response.json()


def refused(call):
    try:
        call()
    except HttpOperationError as error:
        return error.response.status_code
    raise AssertionError("the call should have been refused")


def the_agent_answers_methods(scene):
    answer = scene.method("firmwareStatus")
    equal((answer.status, answer.payload["firmwareStatus"]), (200, "standBy"))
    equal(answer.payload["fwupdate"]["slots"]["A"]["state"], "booted")
    equal(scene.method("nothing").status, 404)
    malformed = scene.method("firmwareUpdate", {"fwPackageUri": "http://plain/x"})
    equal((malformed.status, malformed.payload["error"]["code"]), (400, "MalformedRequest"))
    idle = scene.method("firmwareCancel")
    equal((idle.status, idle.payload["error"]["code"]), (503, "NotReady"))


def a_job_updates_the_gateway(scene):
    method = CloudToDeviceMethod(
        method_name="firmwareUpdate",
        payload={"fwPackageUri": scene.two, "version": "2.0.0", "operationId": "by-job"},
        response_timeout_in_seconds=30,
        connect_timeout_in_seconds=30,
    )
    request = JobRequest(
        job_id="by-job",
        type="scheduleDeviceMethod",
        cloud_to_device_method=method,
        query_condition=f"deviceId IN ['{DEVICE}']",
        max_execution_time_in_seconds=300,
    )
    scene.jobs.create_scheduled_job("by-job", request)
    job = eventually(lambda: (lambda job: job.status == "completed" and job)(scene.jobs.get_scheduled_job("by-job")), PATIENCE)
    equal(job.device_job_statistics.succeeded_count, 1)
    row = scene.rows("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'by-job'")[0]
    equal(row["outcome"]["deviceMethodResponse"]["status"], 200)
    last = eventually(lambda: scene.reported()["fwupdate"].get("last"), PATIENCE)
    equal((last["id"], last["result"], last["toVersion"]), ("by-job", "committed", "2.0.0"))
    equal(scene.reported()["firmwareStatus"], "completed")
    again = scene.method("firmwareUpdate", {"fwPackageUri": scene.two, "operationId": "by-job"})
    equal((again.status, scene.reported()["fwupdate"]["last"]["id"]), (200, "by-job"))


def queries_find_it_by_what_it_reports(scene):
    for number in range(4):
        scene.registry.create_device_with_sas(f"spare-{number}", "", "", "enabled")
    done = QuerySpecification(query="SELECT * FROM devices WHERE properties.reported.firmwareStatus = 'completed'")
    equal([twin.device_id for twin in scene.registry.query_iot_hub(done).items], [DEVICE])
    every, token, pages = [], None, 0
    while pages == 0 or token:
        page = scene.registry.query_iot_hub(QuerySpecification(query="SELECT * FROM devices"), token, 2)
        every += [twin.device_id for twin in page.items]
        token, pages = page.continuation_token, pages + 1
    equal((every, pages), ([DEVICE, "spare-0", "spare-1", "spare-2", "spare-3"], 3))
    # The SDK reads every row as a twin, so a column must not be called `version`, which is a number there.
    versions = "SELECT properties.reported.fwupdate.last.toVersion AS firmware, COUNT() AS n FROM devices " \
        "WHERE is_defined(properties.reported.fwupdate) GROUP BY properties.reported.fwupdate.last.toVersion"
    equal(scene.rows(versions), [{"firmware": "2.0.0", "n": 1}])
    statistics = scene.registry.get_device_registry_statistics()
    equal((statistics.total_device_count, statistics.enabled_device_count), (5, 5))
    equal(scene.registry.get_service_statistics().connected_device_count, 1)


def configuration(scene, **changes):
    """Firmware 3.0.0 for every device of the ring `canary`."""
    section = {"fwPackageUri": scene.three, "version": "3.0.0"}
    committed = "SELECT deviceId FROM devices WHERE properties.reported.fwupdate.desired.code = 'Committed'"
    fields = dict(
        id="fw-3",
        content=ConfigurationContent(device_content={"properties.desired.fwupdate": section}),
        target_condition="tags.ring = 'canary'",
        priority=10,
        labels={"by": "sdk"},
        metrics=ConfigurationMetrics(queries={"committed": committed}),
    )
    return Configuration(**{**fields, **changes})


def a_configuration_is_tested_before_it_is_made(scene):
    good = ConfigurationQueriesTestInput(target_condition="tags.ring = 'canary'", custom_metric_queries={})
    equal(scene.configurations.test_configuration_queries(good).target_condition_error, None)
    bad = ConfigurationQueriesTestInput(target_condition="tags.ring =", custom_metric_queries={"m": "SELECT"})
    told = scene.configurations.test_configuration_queries(bad)
    assert told.target_condition_error and list(told.custom_metric_query_errors) == ["m"], told
    equal(refused(lambda: scene.configurations.create_configuration(configuration(scene, target_condition="tags."))), 400)


def a_configuration_updates_the_gateway(scene):
    made = scene.configurations.create_configuration(configuration(scene))
    equal((made.id, made.priority, made.system_metrics.results["targetedCount"]), ("fw-3", 10, 0))
    scene.registry.update_twin(DEVICE, Twin(tags={"ring": "canary"}))
    eventually(lambda: scene.configurations.get_configuration("fw-3").metrics.results["committed"] == 1, PATIENCE)
    told = scene.reported()["fwupdate"]
    equal((told["desired"]["version"], told["last"]["source"], told["last"]["toVersion"]), ("3.0.0", "desired", "3.0.0"))
    shown = scene.configurations.get_configurations(10)
    equal([one.id for one in shown], ["fw-3"])
    equal(shown[0].system_metrics.results, {"targetedCount": 1, "appliedCount": 1})
    applied = scene.rows(shown[0].system_metrics.queries["appliedCount"])
    equal(applied, [{"deviceId": DEVICE}])


def a_configuration_is_changed_by_its_etag(scene):
    kept = scene.configurations.get_configuration("fw-3")
    changed = scene.configurations.update_configuration(configuration(scene, priority=11, etag=kept.etag), kept.etag)
    equal((changed.priority, changed.etag == kept.etag), (11, False))
    equal(refused(lambda: scene.configurations.update_configuration(configuration(scene), kept.etag)), 412)
    equal(refused(lambda: scene.configurations.create_configuration(configuration(scene))), 409)
    other = ConfigurationContent(device_content={"properties.desired.fwupdate": {"version": "9"}})
    equal(refused(lambda: scene.configurations.update_configuration(configuration(scene, content=other), "*")), 400)
    equal(refused(lambda: scene.configurations.delete_configuration("fw-3", kept.etag)), 412)
    scene.configurations.delete_configuration("fw-3", changed.etag)
    equal(refused(lambda: scene.configurations.get_configuration("fw-3")), 404)
    # What it wrote stays, and the gateway stays as it is.
    equal(scene.registry.get_twin(DEVICE).properties.desired["fwupdate"]["version"], "3.0.0")


def desired_properties_are_withdrawn(scene):
    scene.registry.update_twin(DEVICE, Twin(properties=TwinProperties(desired={"fwupdate": None})))
    eventually(lambda: "desired" not in scene.reported()["fwupdate"], PATIENCE)
    equal(scene.reported()["fwupdate"]["last"]["toVersion"], "3.0.0")


def what_the_stand_in_leaves_out_says_so(scene):
    """docs/local-hub.md names each of these."""
    content = ConfigurationContent(modules_content={"$edgeAgent": {}})
    equal(refused(lambda: scene.configurations.apply_configuration_on_edge_device(DEVICE, content)), 501)
    equal(scene.jobs.get_import_export_jobs(), [])
    transfer = JobProperties(type="export", output_blob_container_uri="https://x.blob.core.windows.net/devices")
    equal(refused(lambda: scene.jobs.create_import_export_job(transfer)), 501)
    edge = scene.registry.create_device_with_sas
    equal(refused(lambda: edge("edge", "", "", "enabled", iot_edge=True)), 501)
    equal(refused(lambda: scene.registry.create_device_with_certificate_authority("ca", "enabled")), 501)


CHECKS = [
    the_agent_answers_methods,
    a_job_updates_the_gateway,
    queries_find_it_by_what_it_reports,
    a_configuration_is_tested_before_it_is_made,
    a_configuration_updates_the_gateway,
    a_configuration_is_changed_by_its_etag,
    desired_properties_are_withdrawn,
    what_the_stand_in_leaves_out_says_so,
]


def main():
    scene, checks = Scene(*sys.argv[1:3]), Checks()
    for check in CHECKS:
        checks.run(check.__name__.replace("_", " "), check, scene)
    return checks.verdict()


if __name__ == "__main__":
    sys.exit(main())
