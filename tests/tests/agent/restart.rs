//! One agent ends, the next one goes on.

use std::fs;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use sidescope_common::EdgeKey;
use sidescope_tests::wait_for;

use crate::scene::{HOOKS, SOON, Scene};

#[test]
fn what_happens_while_no_agent_runs_is_told_by_the_next() -> Result<()> {
    let scene = Scene::new()?;
    let server = scene.server_edge();
    let first = scene.agent(&[])?;
    let before = scene.connect(1)?;
    scene.request("one.test")?;
    first.tells(&[before])?;
    first.tells_host(server, "one.test")?;
    let links = scene.links()?;
    assert_eq!(links.len(), HOOKS);

    first.process.kill();
    let between = scene.connect(2)?;
    scene.request("two.test")?;
    assert_eq!(scene.links()?, links);

    let second = scene.agent(&[])?;
    second.tells(&[before, between, server])?;
    second.tells_host(server, "two.test")?;
    assert_eq!(scene.links()?, links, "attached again, or taken off");
    assert_eq!(second.losses()?["agentKilled"], 1);
    // What the first one may have taken to its grave is told again, though the programs knew it.
    assert!(!second.has_host(server, "one.test")?);
    scene.request("one.test")?;
    second.tells_host(server, "one.test")?;
    for agent in [first, second] {
        agent.never_takes_back(&[before, between, server])?;
    }
    scene.bed.end()
}

#[test]
fn the_readme_shows_what_an_agent_prints() -> Result<()> {
    let readme = include_str!("../../../README.md");
    let shown = readme.lines().find(|line| line.starts_with("{\"netns\"") && line.contains("one.test"));
    let shown = shown.context("no line of an agent")?;
    let scene = Scene::new()?;
    let agent = scene.agent(&[])?;
    scene.request("one.test")?;
    agent.tells_host(scene.server_edge(), "one.test")?;
    let said = agent.process.log()?;
    let printed = said.lines().rfind(|line| line.contains("one.test")).context("no such line")?;
    let without_cookie = |line: &str| line.trim_start_matches(|c| c != ',').to_owned();
    assert_eq!(without_cookie(printed), without_cookie(shown));
    scene.bed.end()
}

#[test]
fn an_agent_that_is_asked_to_end_leaves_its_programs_and_has_told_everything() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let links = scene.links()?;
    let last = scene.connect(1)?;
    scene.request("one.test")?;
    first.terminate()?;
    assert!(first.edges()?.contains_key(&last), "{}", first.process.log()?);
    assert!(first.has_host(scene.server_edge(), "one.test")?, "{}", first.process.log()?);
    assert!(first.process.log()?.contains("the programs stay attached"));
    assert_eq!(scene.links()?, links);

    let between = scene.connect(2)?;
    let second = scene.agent(&[])?;
    second.tells(&[last, between])?;
    assert_eq!(second.losses()?, Value::Null);
    assert_eq!(scene.links()?, links);
    scene.bed.end()
}

#[test]
fn a_connection_that_is_older_than_the_agent_but_not_than_its_programs_tells_its_hosts() -> Result<()> {
    let scene = Scene::new()?;
    let folder = tempfile::tempdir()?;
    let first = scene.agent(&[])?;
    let sender = scene.requests("one.test", "two.test", folder.path())?;
    first.tells_host(scene.server_edge(), "one.test")?;
    first.process.kill();

    let second = scene.agent(&[])?;
    second.tells(&[scene.server_edge()])?;
    fs::write(folder.path().join("go"), "go on")?;
    sender.success(SOON)?;
    second.tells_host(scene.server_edge(), "two.test")?;
    let edge = &second.edges()?[&scene.server_edge()];
    assert_eq!((edge.get("existing"), edge.get("hostUnknown")), (None, None), "{edge}");
    scene.bed.end()
}

#[test]
fn a_connection_from_before_the_first_agent_tells_its_hosts_to_the_second_and_is_forgotten_when_it_ends()
-> Result<()> {
    let scene = Scene::new()?;
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let sender = scene.requests("a.test", "two.test", folders[0].path())?;
    let other = scene.requests("a.test", "a.test", folders[1].path())?;
    let first = scene.agent(&[])?;
    first.tells(&[scene.server_edge()])?;
    assert_eq!(first.edges()?[&scene.server_edge()]["existing"], true);
    let layout = scene.bpffs.layout()?;
    wait_for("the end of the first list of sockets", SOON, || {
        Ok(layout.join("listed").exists().then_some(()))
    })?;
    let older = || -> Result<usize> {
        let map = Map::from_map_data(MapData::from_pin(layout.join("OLDER"))?)?;
        let map: HashMap<_, u64, EdgeKey> = map.try_into()?;
        Ok(map.keys().count())
    };
    assert_eq!(older()?, 2);
    first.process.kill();

    other.kill();
    let second = scene.agent(&[])?;
    wait_for("the end of what the kernel knew of a closed connection", SOON, || {
        second.process.must_run()?;
        Ok((older()? == 1).then_some(()))
    })?;
    fs::write(folders[0].path().join("go"), "go on")?;
    sender.success(SOON)?;
    second.tells_host(scene.server_edge(), "two.test")?;
    scene.bed.end()
}

#[test]
fn each_loss_is_told_by_one_agent_and_lines_of_all_of_them_add_up() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&["--edges", "2"])?;
    for number in 1..=5 {
        scene.connect(number)?;
    }
    first.tells_losses(&json!({ "edgesFull": 3 }))?;
    first.process.kill();
    scene.connect(6)?;

    // What was lost while no agent ran, and since.
    let second = scene.agent(&["--edges", "2"])?;
    second.tells_losses(&json!({ "agentKilled": 1, "edgesFull": 1 }))?;
    scene.connect(7)?;
    second.tells_losses(&json!({ "agentKilled": 1, "edgesFull": 2 }))?;
    second.terminate()?;
    let third = scene.agent(&["--edges", "2"])?;
    third.terminate()?;
    assert_eq!((third.edges()?.len(), third.losses()?), (2, Value::Null));
    scene.connect(8)?;

    // The same where programs are exchanged.
    let fourth = scene.agent(&["--edges", "64"])?;
    scene.drained(&fourth)?;
    fourth.tells_losses(&json!({ "edgesFull": 1 }))?;
    fourth.terminate()?;
    let fifth = scene.agent(&["--edges", "64"])?;
    fifth.terminate()?;
    assert_eq!((fifth.edges()?.len(), fifth.losses()?), (2, Value::Null));
    scene.bed.end()
}
