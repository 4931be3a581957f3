//! One agent at a time, and what removes all that agents leave.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sidescope_tests::Cmd;

use crate::fixture::sidescope;
use crate::scene::{HOOKS, SOON, Scene};

#[test]
fn a_purge_leaves_nothing_and_does_nothing_where_nothing_is() -> Result<()> {
    let scene = Scene::new()?;
    let pods = scene.bed.pods_cgroup();
    let (code, said) = scene.purge()?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nothing to remove"), "{said}");

    let first = scene.agent(&[])?;
    first.terminate()?;
    let old = scene.bpffs.objects(&pods)?;
    // A second layout, and beside them one that no agent would touch but to remove it.
    let kept = scene.bpffs.layout()?.with_file_name("v1-e1-r4096-0");
    fs::rename(scene.bpffs.layout()?, &kept)?;
    let second = scene.start(&["--edges", "1024"])?;
    second.process.wait_for_log(" watching ", SOON)?;
    scene.drained(&second)?;
    let objects = scene.bpffs.objects(&pods)?;
    assert_eq!(objects.links.len(), HOOKS);
    assert!(objects.programs.len() > HOOKS && objects.maps.len() >= 14, "{objects:?}");
    old.gone()?;
    second.process.kill();
    fs::create_dir(&kept)?;

    let (code, said) = scene.purge()?;
    assert_eq!(code, Some(0), "{said}");
    for line in ["v1-e1-r4096-0: 0 attached programs, 0 maps\n", ": 6 attached programs, 16 maps\n"] {
        assert!(said.contains(line), "{said}");
    }
    ensure!(!scene.bpffs.root().exists(), "the folder is left");
    objects.gone()?;
    assert_eq!(scene.purge()?.0, Some(0));
    scene.bed.end()
}

#[test]
fn a_purge_beside_an_agent_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.agent(&[])?;
    let links = scene.links()?;
    let (code, said) = scene.purge()?;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("another agent uses"), "{said}");
    agent.process.must_run()?;
    assert_eq!(scene.links()?, links);
    let seen = scene.connect(1)?;
    agent.tells(&[seen])?;
    scene.bed.end()
}

#[test]
fn an_agent_whose_programs_somebody_takes_off_says_so_and_ends_when_it_has_told_all() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.agent(&[])?;
    // Between two reports.
    scene.request("one.test")?;
    let last = scene.connect(9)?;
    fs::remove_file(scene.bpffs.layout()?.join("sidescope_connect4"))?;
    assert_eq!(agent.process.wait(SOON)?.code(), Some(1));
    let said = agent.process.log()?;
    assert!(said.contains("start it again"), "{said}");
    assert!(agent.edges()?.contains_key(&last) && agent.has_host(scene.server_edge(), "one.test")?, "{said}");
    let next = scene.agent(&[])?;
    next.tells(&[last])?;
    scene.drained(&next)?;
    assert_eq!(next.losses()?, Value::Null, "the one before it has told all");
    let seen = scene.connect(1)?;
    next.tells(&[seen])?;
    assert_eq!(scene.links()?.len(), HOOKS);
    scene.bed.end()
}

#[test]
fn an_agent_whose_folder_another_takes_the_place_of_says_so_and_ends() -> Result<()> {
    let scene = Scene::new()?;
    for whole in [true, false] {
        let first = scene.agent(&[])?;
        let layout = scene.bpffs.layout()?;
        let aside = scene.bpffs.path().join("aside");
        if whole {
            fs::rename(scene.bpffs.root(), &aside)?;
            scene.agent(&[])?.terminate()?;
        } else {
            fs::rename(&layout, &aside)?;
            let copy = scene.bpffs.make_folder(&layout.file_name().context("no name")?.to_string_lossy())?;
            for pin in fs::read_dir(&aside)? {
                let pin = pin?;
                if pin.file_type()?.is_file() {
                    fs::hard_link(pin.path(), copy.join(pin.file_name()))?;
                }
            }
        }
        assert_eq!(first.process.wait(SOON)?.code(), Some(1));
        assert!(first.process.log()?.contains("start it again"), "{}", first.process.log()?);
        assert_eq!(layout.join("reported").exists(), whole, "it marks what is not its own");
        fs::remove_dir_all(&aside)?;
        assert_eq!(scene.purge()?.0, Some(0));
    }
    scene.bed.end()
}

#[test]
fn a_second_agent_waits_for_the_end_of_the_first_but_not_for_ever() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let second = scene.start(&[])?;
    second.process.wait_for_log("waiting for its end", SOON)?;
    first.terminate()?;
    second.process.wait_for_log(" watching ", SOON)?;

    let start = Instant::now();
    let third = scene.start(&[])?;
    third.process.wait_for_log("waiting for its end", SOON)?;
    assert_eq!(third.process.wait(SOON)?.code(), Some(2));
    let said = third.process.log()?;
    assert!(said.contains("another agent uses") && said.contains("still terminating"), "{said}");
    assert!(start.elapsed() >= Duration::from_secs(10), "it waited {:?}", start.elapsed());
    assert_eq!(scene.links()?.len(), HOOKS);

    // While it waits it can be asked to end.
    let fourth = scene.start(&[])?;
    fourth.process.wait_for_log("waiting for its end", SOON)?;
    fourth.terminate()?;
    second.terminate()?;
    scene.bed.end()
}

#[test]
fn a_file_system_that_cannot_hold_programs_is_told() -> Result<()> {
    let scene = Scene::new()?;
    let below = scene.bpffs.path().join("below");
    fs::create_dir(&below)?;
    scene.bpffs.read_only()?;
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing");
    let writable = format!("mount -o remount,rw {})", scene.bpffs.path().display());
    for (path, expected) in [
        (missing.as_path(), "there is no directory "),
        (folder.path(), "there is no BPF file system at"),
        (scene.bpffs.path(), &writable),
        (&below, &writable),
    ] {
        let cmd = Cmd::new(sidescope()?).args(["agent", "--bpffs"]).arg(path);
        let process =
            scene.bed.spawn_on_machine(&cmd.clone().arg("--cgroup").arg(scene.bed.pods_cgroup()))?;
        assert_eq!(process.wait(SOON)?.code(), Some(2));
        let said = process.log()?;
        assert!(said.contains(expected) && said.contains("in Kubernetes"), "{said}");
        let purge = scene.bed.spawn_on_machine(&cmd.arg("--purge"))?;
        let (code, said) = (purge.wait(SOON)?.code(), purge.log()?);
        if path.starts_with(folder.path()) {
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains("nothing was removed: ") && said.contains(expected), "{said}");
        } else {
            assert_eq!(code, Some(0), "{said}");
        }
    }
    scene.bed.end()
}

#[test]
fn another_agent_on_the_same_cgroup_with_another_place_for_its_pins_is_told() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let place = scene.bpffs.path().join("another");
    fs::create_dir(&place)?;
    let cmd = Cmd::new(sidescope()?).args(["agent", "--bpffs"]).arg(&place);
    let second = scene.bed.spawn_on_machine(&cmd.arg("--cgroup").arg(scene.bed.pods_cgroup()))?;
    second.wait_for_log(" watching ", SOON)?;
    let said = second.log()?;
    assert!(said.contains("that this agent does not keep are attached"), "{said}");
    second.kill();
    assert_eq!(scene.purge_in(&place)?.0, Some(0));
    // Neither what one has attached itself, nor what it adopts or drains, is another's.
    first.terminate()?;
    let third = scene.agent(&[])?;
    third.terminate()?;
    let fourth = scene.agent(&["--edges", "1024"])?;
    scene.drained(&fourth)?;
    for agent in [first, third, fourth] {
        assert!(!agent.process.log()?.contains("does not keep"), "{}", agent.process.log()?);
    }
    scene.bed.end()
}

#[test]
fn one_without_rights_is_told_what_it_needs() -> Result<()> {
    let scene = Scene::new()?;
    let agent = Cmd::new(sidescope()?).args(["agent", "--bpffs"]).arg(scene.bpffs.path());
    let process =
        scene.bed.spawn_on_machine(&agent.arg("--cgroup").arg(scene.bed.pods_cgroup()).uid(1000))?;
    assert_eq!(process.wait(SOON)?.code(), Some(2));
    let said = process.log()?;
    assert!(said.contains("run as root"), "{said}");
    scene.bed.end()
}
