//! What could not be read is told of the edge and the network namespace that it was of, and of no other.

use std::fs;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, MapInfo, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use serde_json::{Value, json};
use sidescope_tests::{Cmd, wait_for};

use crate::fixture::TESTBED;
use crate::scene::{Agent, SOON, Scene};

/// Bytes of a slot in which the programs read packets: it begins with the number of programs that want it.
const SLOT: usize = 4192;

/// Takes the room to read packets away from the programs, or gives it back.
fn take_room(scene: &Scene, taken: bool) -> Result<()> {
    let pin = scene.bpffs.layout()?.join("SCRATCH");
    assert_eq!(MapInfo::from_pin(&pin)?.value_size() as usize, SLOT);
    let mut slots: PerCpuArray<_, [u8; SLOT]> = Map::from_map_data(MapData::from_pin(pin)?)?.try_into()?;
    let cpus = nr_cpus().map_err(|(_, error)| error)?;
    for slot in 0..slots.len() {
        let mut value = [0; SLOT];
        value[0] = u8::from(taken);
        slots.set(slot, PerCpuValues::try_from(vec![value; cpus])?, 0)?;
    }
    Ok(())
}

/// What it has printed last of the network namespace with this cookie.
fn incomplete(agent: &Agent, netns: &Value) -> Result<Value> {
    let lines = agent.lines()?.into_iter().rev();
    let mut of_it = lines.filter(|line| line.get("incomplete").is_some() && line["netns"] == *netns);
    Ok(of_it.next().map_or(Value::Null, |line| line["incomplete"].clone()))
}

#[test]
fn a_request_without_room_to_read_it_marks_its_edge_and_the_next_one_is_found() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.agent(&[])?;
    let other = scene.connect_from(&scene.server, 1)?;
    agent.tells(&[other])?;

    let folder = tempfile::tempdir()?;
    take_room(&scene, true)?;
    let sender = scene.requests("one.test", "two.test", folder.path())?;
    let edge = scene.server_edge();
    wait_for("the loss", SOON, || {
        agent.process.must_run()?;
        Ok((agent.losses()?["packetUnreadable"].as_u64() > Some(0)).then_some(()))
    })?;
    take_room(&scene, false)?;
    fs::write(folder.path().join("go"), "go on")?;
    sender.success(SOON)?;
    agent.tells_host(edge, "two.test")?;
    // Marks are read with the whole set, at the end at the latest.
    agent.terminate()?;
    assert!(!agent.has_host(edge, "one.test")?);
    assert_eq!(agent.edges()?[&edge]["hostUnknown"], true);

    let netns = |edge| Ok::<_, anyhow::Error>(agent.edges()?.get(edge).context("no edge")?["netns"].clone());
    assert_eq!(incomplete(&agent, &netns(&edge)?)?, json!(["packetUnreadable"]));
    assert_eq!(incomplete(&agent, &netns(&other)?)?, Value::Null);
    assert_eq!(incomplete(&agent, &Value::Null)?, Value::Null, "not all of them");

    // The kernel keeps whom losses have hit, and the edge that it has marked.
    let next = scene.agent(&[])?;
    next.tells(&[edge])?;
    wait_for("the namespace", SOON, || {
        next.process.must_run()?;
        Ok((incomplete(&next, &netns(&edge)?)? == json!(["packetUnreadable"])).then_some(()))
    })?;
    assert_eq!(next.edges()?[&edge]["hostUnknown"], true);
    scene.bed.end()
}

#[test]
fn every_kind_of_request_without_room_to_read_it_is_told() -> Result<()> {
    // A hello that says nothing yet, and a connection of HTTP/2.
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for bytes in [hello, http2] {
        let scene = Scene::new()?;
        let agent = scene.agent(&[])?;
        take_room(&scene, true)?;
        let send = Cmd::new(TESTBED).args(["send", &scene.server_edge().to_string()]);
        scene.client.run(&send.stdin(bytes))?;
        agent.terminate()?;
        assert_eq!(agent.edges()?[&scene.server_edge()]["hostUnknown"], true);
        assert_eq!(agent.losses()?, json!({ "packetUnreadable": 1 }));
        scene.bed.end()?;
    }
    Ok(())
}

#[test]
fn another_layout_takes_over_whom_losses_have_hit() -> Result<()> {
    for knows_whom in [true, false] {
        let scene = Scene::new()?;
        let first = scene.agent(&[])?;
        take_room(&scene, true)?;
        scene.request("one.test")?;
        first.terminate()?;
        let netns = first.edges()?[&scene.server_edge()]["netns"].clone();
        let layout = scene.bpffs.layout()?;
        if !knows_whom {
            // As a build left it that did not note it yet.
            fs::remove_file(layout.join("LOSSES"))?;
        }
        fs::rename(&layout, layout.with_file_name("v1-e32768-r524288-0000000000000000"))?;

        let next = scene.agent(&[])?;
        next.tells(&[scene.server_edge()])?;
        scene.drained(&next)?;
        let told = json!(["packetUnreadable"]);
        let (of_it, of_all) = wait_for("whom the loss has hit", SOON, || {
            next.process.must_run()?;
            let hit = (incomplete(&next, &netns)?, incomplete(&next, &Value::Null)?);
            Ok((hit.0 == told || hit.1 == told).then_some(hit))
        })?;
        assert_eq!((of_it == told, of_all == told), (knows_whom, !knows_whom), "{}", next.process.log()?);
        assert_eq!(next.edges()?[&scene.server_edge()]["hostUnknown"], true);
        scene.bed.end()?;
    }
    Ok(())
}
