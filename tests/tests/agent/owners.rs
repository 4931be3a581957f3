//! What others may do in a BPF file system that anybody can write, as it is when it is mounted without a mode.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use sidescope_tests::Cmd;

use crate::fixture::sidescope;
use crate::scene::{SOON, Scene};

const SOMEBODY: u32 = 1000;

/// A folder with a pin and a folder in it, to which nothing must happen.
struct Precious(PathBuf);

impl Precious {
    fn new(scene: &Scene) -> Result<Self> {
        let path = scene.bpffs.path().join("precious");
        fs::create_dir_all(path.join("folder"))?;
        HashMap::<MapData, u32, u32>::create(1, 0)?.pin(path.join("EDGES"))?;
        Ok(Self(path))
    }

    fn check(&self) {
        assert!(self.0.join("folder").is_dir() && self.0.join("EDGES").is_file());
    }
}

/// Agent and purge both refuse to go on, and say this.
fn refused(scene: &Scene, expected: &str) -> Result<()> {
    let agent = scene.start(&[])?;
    let (code, said) = (agent.process.wait(SOON)?.code(), agent.process.log()?);
    for (code, said) in [(code, said), scene.purge()?] {
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected) && said.contains("mode=700"), "{expected}: {said}");
    }
    if fs::symlink_metadata(scene.bpffs.root())?.is_dir() {
        assert_eq!(scene.links()?.len(), 0);
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

#[test]
fn a_folder_that_is_not_ours_alone_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let (root, precious) = (scene.bpffs.root(), Precious::new(&scene)?);
    symlink(&precious.0, &root)?;
    refused(&scene, "is a symbolic link")?;
    assert!(fs::symlink_metadata(&root)?.is_symlink());
    fs::remove_file(&root)?;

    fs::hard_link(precious.0.join("EDGES"), &root)?;
    refused(&scene, "is no folder")?;
    fs::remove_file(&root)?;

    // A layout that would be drained, or removed.
    let layout = scene.bpffs.make_folder("v1-e1-r4096-0")?;
    fs::hard_link(precious.0.join("EDGES"), layout.join("EDGES"))?;
    for mode in [0o750, 0o701, 0o1777] {
        set_mode(&root, mode)?;
        refused(&scene, &format!("(mode {mode:04o})"))?;
    }
    set_mode(&root, 0o700)?;
    chown(&root, Some(SOMEBODY), None)?;
    refused(&scene, "belongs to user 1000, and this is user 0")?;
    chown(&root, Some(0), None)?;
    assert!(layout.join("EDGES").exists());

    // Whoever may rename the folder can put another one in its place.
    let bpffs = scene.bpffs.path();
    assert_eq!(fs::metadata(bpffs)?.mode() & 0o7777, 0o1777, "what the kernel does");
    set_mode(bpffs, 0o777)?;
    refused(&scene, "its mode is 0777, without the sticky bit")?;
    set_mode(bpffs, 0o1777)?;
    chown(bpffs, Some(SOMEBODY), None)?;
    refused(&scene, "it belongs to user 1000")?;
    chown(bpffs, Some(0), None)?;

    let agent = scene.agent(&[])?;
    scene.drained(&agent)?;
    precious.check();
    scene.bed.end()
}

#[test]
fn links_among_the_pins_are_never_followed() -> Result<()> {
    let scene = Scene::new()?;
    let first = scene.agent(&[])?;
    let (root, own) = (scene.bpffs.root(), scene.bpffs.layout()?);
    first.terminate()?;
    assert_eq!(scene.purge()?.0, Some(0));

    let precious = Precious::new(&scene)?;
    let layout = scene.bpffs.make_folder("v1-e2-r4096-0")?;
    for link in [&own, &root.join("v1-e1-r4096-0"), &layout.join("folder"), &layout.join("reported")] {
        symlink(&precious.0, link)?;
    }
    symlink(precious.0.join("EDGES"), layout.join("EDGES"))?;
    let second = scene.agent(&[])?;
    let seen = scene.connect(1)?;
    second.tells(&[seen])?;
    second.tells_losses(&serde_json::json!({ "unreadableLayout": 1 }))?;
    let said = second.process.log()?;
    assert!(said.contains("it is no folder") && said.contains("EDGES is no pin"), "{said}");
    second.terminate()?;
    precious.check();
    assert!(own.is_dir() && !fs::symlink_metadata(&own)?.is_symlink());
    assert!(!layout.exists());

    // Nor is a layout with a link in the place of a pin adopted.
    let pin = own.join("EDGES");
    fs::rename(&pin, precious.0.join("OWN"))?;
    symlink(precious.0.join("OWN"), &pin)?;
    let third = scene.agent(&[])?;
    assert!(third.process.log()?.contains("the map EDGES is missing"), "{}", third.process.log()?);
    third.tells_losses(&serde_json::json!({ "unreadableLayout": 1 }))?;
    third.terminate()?;

    let (code, said) = scene.purge()?;
    assert_eq!(code, Some(0), "{said}");
    assert!(!root.exists());
    precious.check();
    scene.bed.end()
}

#[test]
fn a_purge_without_rights_does_not_say_that_there_is_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.agent(&[])?;
    agent.terminate()?;
    let purge = Cmd::new(sidescope()?).args(["agent", "--purge", "--bpffs"]).arg(scene.bpffs.path());
    for mode in [0o1700, 0o1777] {
        set_mode(scene.bpffs.path(), mode)?;
        let process = scene.bed.spawn_on_machine(&purge.clone().uid(SOMEBODY))?;
        assert_eq!(process.wait(SOON)?.code(), Some(2));
        let said = process.log()?;
        assert!(said.contains("no permission to") && said.contains("run as root"), "{mode:o}: {said}");
    }
    scene.bpffs.layout().context("it is gone")?;
    scene.bed.end()
}
