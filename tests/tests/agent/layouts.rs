//! What is pinned is not what this agent would have pinned.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;
use aya::maps::{HashMap, MapData};
use serde_json::{Value, json};
use sidescope_tests::Cmd;

use crate::fixture::TESTBED;
use crate::scene::{Agent, HOOKS, SOON, Scene};

/// Connects to one new destination after the other while `during` runs, and returns all of them.
fn connecting<T>(scene: &Scene, during: impl FnOnce() -> Result<T>) -> Result<(T, Vec<SocketAddr>)> {
    const MOST: u16 = 5000;
    let folder = tempfile::tempdir()?;
    let stop = folder.path().join("stop");
    let script = r#"port=0; while [ $port -lt "$3" ] && ! [ -e "$2" ]; do
        port=$((port+1)); "$0" dial blocking "$1:$port"; done"#;
    let nowhere = Ipv4Addr::new(203, 0, 113, 1);
    let cmd = Cmd::new("sh").args(["-c", script, TESTBED, &nowhere.to_string()]).arg(&stop);
    let connects = scene.client.spawn(&cmd.arg(MOST.to_string()))?;
    connects.wait_for_log("EHOSTUNREACH", SOON)?;
    let result = during()?;
    File::create(&stop)?;
    connects.success(SOON)?;
    let said = connects.log()?;
    assert!(said.lines().all(|line| line == "EHOSTUNREACH"), "{said}");
    let made = said.lines().zip(1..).map(|(_, port)| SocketAddr::from((nowhere, port))).collect();
    Ok((result, made))
}

/// After the end of the first agent, changes what is pinned, and starts another: it must tell all, and leave one layout.
fn change(scene: &Scene, more: &[&str], change: impl Fn(&Path) -> Result<()>) -> Result<Agent> {
    let server = scene.server_edge();
    let first = scene.agent(&[])?;
    // Known to the first agent, so that only the set still has it.
    let before = scene.connect(2)?;
    scene.request("one.test")?;
    first.tells(&[before])?;
    first.tells_host(server, "one.test")?;
    let links = scene.links()?;
    first.process.kill();
    scene.request("two.test")?;
    change(&scene.bpffs.layout()?)?;

    let (second, made) = connecting(scene, || scene.agent(more))?;
    assert!(made.len() > 1, "nothing was made while it started: {made:?}");
    second.tells(&made)?;
    second.tells(&[before])?;
    // Edges and what was in the ring.
    second.tells_host(server, "two.test")?;
    let layout = scene.drained(&second)?;
    let now = scene.links()?;
    assert_eq!((now.len(), now.intersection(&links).count()), (HOOKS, 0));
    assert_eq!(second.losses()?.as_object().map(|losses| losses.len()), Some(1), "{}", second.losses()?);
    assert_eq!(second.losses()?["agentKilled"], 1);
    let name = layout.file_name().expect("a name").to_string_lossy();
    assert_eq!(name.matches('-').count(), 3, "{name}");
    Ok(second)
}

#[test]
fn another_layout_is_drained_when_the_own_programs_are_attached() -> Result<()> {
    let scene = Scene::new()?;
    let agent = change(&scene, &["--edges", "1024", "--ring-bytes", "65536"], |_| Ok(()))?;
    assert!(scene.bpffs.layout()?.to_string_lossy().contains("v1-e1024-r65536-"));
    // And back, with nothing that was known lost.
    agent.terminate()?;
    let again = scene.agent(&[])?;
    again.tells(&agent.edges()?.into_keys().collect::<Vec<_>>())?;
    scene.bed.end()
}

#[test]
fn programs_of_another_layout_see_open_connections_until_the_own_know_them() -> Result<()> {
    let scene = Scene::new()?;
    let (server, folder) = (scene.server_edge(), tempfile::tempdir()?);
    let first = scene.agent(&[])?;
    let sender = scene.requests("one.test", "two.test", folder.path())?;
    first.tells_host(server, "one.test")?;
    first.terminate()?;

    // One that cannot list the open connections.
    let second = scene.start_without_listing(&["--edges", "1024"])?;
    second.process.wait_for_log(" watching ", SOON)?;
    second.tells(&[server])?;
    assert_eq!(second.edges()?[&server].get("existing"), None, "it was seen to connect");
    fs::write(folder.path().join("go"), "go on")?;
    sender.success(SOON)?;
    second.tells_host(server, "two.test")?;
    let seen = scene.connect(1)?;
    second.tells(&[seen])?;
    assert_eq!((scene.bpffs.layouts()?.len(), scene.links()?.len()), (2, 2 * HOOKS));
    assert_eq!(second.losses()?, Value::Null);
    // The same holds for the next one, however this one ends.
    second.terminate()?;
    assert_eq!(scene.links()?.len(), 2 * HOOKS);
    let third = scene.start_without_listing(&["--edges", "1024"])?;
    third.process.wait_for_log(" watching ", SOON)?;
    third.tells(&[server, seen])?;
    assert_eq!(third.losses()?, Value::Null);
    third.process.kill();

    let last = scene.agent(&["--edges", "1024"])?;
    last.tells(&[server, seen])?;
    scene.drained(&last)?;
    assert_eq!(scene.links()?.len(), HOOKS);
    assert_eq!(last.losses()?, json!({ "agentKilled": 1 }));
    last.never_takes_back(&[server, seen])?;
    scene.bed.end()
}

#[test]
fn programs_of_another_layout_come_off_in_the_end_and_what_that_may_miss_is_told() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let before = scene.connect(1)?;
    first.terminate()?;
    let second = scene.start_without_listing(&["--edges", "1024"])?;
    second.tells(&[before])?;
    scene.drained(&second)?;
    assert_eq!(scene.links()?.len(), HOOKS);
    second.tells_losses(&json!({ "unlistedAtChange": 1 }))?;
    assert!(second.process.log()?.contains("connections that are not listed can be missed"));
    scene.bed.end()
}

#[test]
fn edges_for_which_a_smaller_set_has_no_room_are_counted_and_told() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let seen = [scene.connect(1)?, scene.connect(2)?, scene.connect(3)?];
    first.terminate()?;
    let second = scene.agent(&["--edges", "1"])?;
    second.tells(&seen)?;
    scene.drained(&second)?;
    second.tells_losses(&json!({ "edgesFull": 2 }))?;
    second.terminate()?;
    let third = scene.agent(&["--edges", "1"])?;
    third.terminate()?;
    assert_eq!((third.edges()?.len(), third.losses()?), (1, Value::Null));
    scene.bed.end()
}

#[test]
fn another_layout_is_kept_until_what_came_of_it_has_been_told() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let seen = [scene.connect(1)?, scene.connect(2)?, scene.connect(3)?];
    first.terminate()?;
    // Whoever reads what the second tells, ends after its first line; what is lost in the change comes later.
    let second = scene
        .start_as(&["sh", "-c", r#"("$0" "$@"; echo "it ended: $?" >&2) | head -n 1"#], &["--edges", "1"])?;
    second.process.wait_for_log("it ended: 1", SOON)?;
    assert_eq!(scene.bpffs.layouts()?.len(), 2, "{}", second.process.log()?);

    let third = scene.agent(&["--edges", "1"])?;
    third.tells(&seen)?;
    scene.drained(&third)?;
    third.tells_losses(&json!({ "agentKilled": 1, "edgesFull": 2 }))?;
    scene.bed.end()
}

#[test]
fn the_layout_of_another_build_is_drained() -> Result<()> {
    let scene = Scene::new()?;
    change(&scene, &[], |layout| {
        Ok(fs::rename(layout, layout.with_file_name("v1-e32768-r524288-0000000000000000"))?)
    })?;
    scene.bed.end()
}

#[test]
fn a_layout_that_was_not_finished_is_drained() -> Result<()> {
    let scene = Scene::new()?;
    change(&scene, &[], |layout| {
        let mut name = layout.file_name().expect("a name").to_owned();
        name.push("-new");
        Ok(fs::rename(layout, layout.with_file_name(name))?)
    })?;
    scene.bed.end()
}

#[test]
fn a_layout_with_a_pin_missing_is_drained() -> Result<()> {
    for pin in ["SCRATCH", "sidescope_egress"] {
        let scene = Scene::new()?;
        let agent = change(&scene, &[], |layout| Ok(fs::remove_file(layout.join(pin))?))?;
        assert!(agent.process.log()?.contains("is not whole"), "{}", agent.process.log()?);
        scene.bed.end()?;
    }
    Ok(())
}

#[test]
fn programs_on_another_cgroup_are_not_taken_for_the_own() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let before = scene.connect(1)?;
    first.terminate()?;
    let second = scene.start_on(scene.bed.cgroup(), &[])?;
    second.process.wait_for_log(" watching ", SOON)?;
    let after = scene.connect(2)?;
    second.tells(&[before, after])?;
    scene.drained(&second)?;
    assert_eq!(scene.links()?.len(), 0);
    assert_eq!(scene.bpffs.links_on(scene.bed.cgroup())?.len(), HOOKS);
    scene.bed.end()
}

#[test]
fn a_layout_that_cannot_be_read_is_told_as_a_loss_and_removed() -> Result<()> {
    let scene = Scene::new()?;
    // A version that nobody knows; one that is known, with edges of another size; and what was begun and has nothing in it.
    for name in ["v999-e1-r4096-0", "v1-e1-r4096-0", "v1-e1-r4096-0-new"] {
        let layout = scene.bpffs.make_folder(name)?;
        if !name.ends_with("new") {
            HashMap::<MapData, u32, u32>::create(1, 0)?.pin(layout.join("EDGES"))?;
        }
    }
    let agent = scene.agent(&[])?;
    let seen = scene.connect(1)?;
    agent.tells(&[seen])?;
    scene.drained(&agent)?;
    assert_eq!(agent.losses()?, json!({ "unreadableLayout": 2 }));
    assert!(agent.process.log()?.contains("let the agent end by SIGTERM"), "{}", agent.process.log()?);
    scene.bed.end()
}
