//! Connections that were open before the kernel programs: hosts of their later requests.

use std::fs;

use anyhow::Result;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sidescope_tests::Cmd;

use crate::fixture::{Observer, SOON, sidescope};
use crate::sink::{Case, Expect, Sink, compare};

/// A HEADERS frame: :method GET, :scheme http, :path /, then these fields.
fn headers(stream: u8, authority: &[u8]) -> Vec<u8> {
    let block = [&[0x82, 0x86, 0x84][..], authority].concat();
    [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, stream][..], &block].concat()
}

/// :authority as a literal that comes into the dynamic table.
fn literal(host: &str) -> Vec<u8> {
    [&[0x41, host.len() as u8][..], host.as_bytes()].concat()
}

#[test]
fn later_requests_of_a_connection_from_before_name_their_hosts() -> Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let h2 = [PREFACE, &headers(1, &literal("before.test"))].concat();
    // The newest entry of the dynamic table: what it is was sent before.
    let indexed = headers(3, &[0xbe]);
    let after = || Expect::hosts(["after.test"]);
    let case = |name: &str, before: &[u8], after: &[u8], expect| Case {
        name: name.to_owned(),
        bytes: [before, after].concat(),
        cuts: vec![before.len()],
        expect,
    };
    let settings_ack = b"\0\0\0\x04\x01\0\0\0\0";
    let window = b"\0\0\x04\x08\0\0\0\0\0\0\0\x10\0";
    let behind = [&settings_ack[..], window, &headers(3, &literal("after.test"))].concat();
    // As Java's clients order them.
    let block = [&literal("after.test")[..], &[0x83, 0x86, 0x84]].concat();
    let authority_first = [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 3][..], &block].concat();
    // Far more packets than there are milliseconds, none of them a request.
    let body: Vec<u8> = [&[b'x'; 300][..], &get("after.test")].concat();
    let post = b"POST / HTTP/1.1\r\nHost: before.test\r\nContent-Length: 300\r\n\r\n";
    let mut much = case("HTTP/1 behind much else", post, &body, after());
    much.cuts.extend((1..=300).map(|byte| post.len() + byte));
    let cases = [
        case("HTTP/2 behind other frames", &h2, &behind, after()),
        case("HTTP/2, the authority first", &h2, &authority_first, after()),
        much,
        case("HTTP/1", &get("before.test"), &get("after.test"), after()),
        case("HTTP/2", &h2, &headers(3, &literal("after.test")), after()),
        case("HTTP/2, by its index", &h2, &indexed, Expect::default().and_unknown()),
        case("neither", b"hello", b"world, and more of it", Expect::default()),
    ];
    let sink = Sink::new(cases.len())?;
    let folder = tempfile::tempdir()?;
    let mut senders = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let [fifo, input] = ["fifo", "input"].map(|kind| folder.path().join(format!("{kind}-{number}")));
        mkfifo(&fifo, Mode::S_IRWXU)?;
        fs::write(&input, &case.bytes)?;
        let options = ["--pause".as_ref(), fifo.as_os_str(), "--input".as_ref(), input.as_os_str()];
        let sender = sink.client.spawn(&sink.command(number, case).args(options))?;
        sender.wait_for_log("paused", SOON)?;
        senders.push((sender, fifo));
    }
    let cmd = Cmd::new(sidescope()?).env("RUST_LOG", "debug");
    let cgroup = sink.mesh.bed.pods_cgroup();
    let observer = Observer::start_as(cmd, &sink.mesh.bed, &cgroup, &sink.inventory()?, &[])?;
    observer.process.wait_for_log("network namespaces looked at", SOON)?;
    for (sender, fifo) in senders {
        fs::write(fifo, "go on")?;
        sender.success(SOON)?;
    }
    let results = compare(sink, &cases, observer.stop()?)?;
    assert_eq!(results.graph["losses"], serde_json::json!({ "headBeforeStart": 1 }));
    Ok(())
}
