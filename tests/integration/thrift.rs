//! What an update costs in messages, however long it takes.

use std::fs;

use serde_json::json;

use crate::checker::PATCHES;
use crate::harness::{DEVICE, Setup, Spec, World};

/// Patches of an update that staged at `rate`, waited for approval and was tried for a while; and their bytes.
async fn cost(rate: &str) -> (usize, usize) {
    let settings = format!(
        "[download]\nrate_limit = \"{rate}\"\n[policy]\napproval = true\n[report]\ninterval = \"1s\"\n\
         [health]\ndeadline = \"1min\"\n"
    );
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let go = world.scratch().join("go");
    world.gateway.add_check("90-wait", &format!("#!/bin/sh\n[ -e '{}' ]\n", go.display())).unwrap();
    let release = world.make(Spec { size: 4 << 20, noise: 2 << 20, ..Spec::default() });
    let before = world.hub.history(DEVICE).len();
    let id = world.update(json!({"fwPackageUri": release.url, "version": release.version})).await;
    world.phase("holding").await;
    assert_eq!(world.call("firmwareApprove", json!({"operationId": id})).await.status, 200);
    world.phase("trying").await;
    fs::write(go, "").unwrap();
    assert_eq!(world.outcome(&id).await["result"], "committed");
    let reports = world.hub.history(DEVICE).split_off(before);
    world.finish().await;
    (reports.len(), reports.iter().map(|report| report.size).sum())
}

#[tokio::test]
async fn a_slow_update_costs_hardly_more_than_a_quick_one() {
    // Twenty seconds in which a report could be made each second; and as fast as it goes.
    let ((slow, slow_bytes), (quick, quick_bytes)) = tokio::join!(cost("100KiB"), cost("1GiB"));
    println!("patches: {slow} slow ({slow_bytes} bytes), {quick} quick ({quick_bytes} bytes)");
    assert!(slow > quick, "the slow one was not seen to progress");
    // A gateway that went the whole way, with all that a new boot tells anew, and still some patches to spare.
    assert!(slow + 2 <= PATCHES, "{slow} patches");
    assert!(slow_bytes < 16 << 10, "{slow_bytes} bytes");
}
