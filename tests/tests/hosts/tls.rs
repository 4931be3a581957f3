//! TLS behind something else, and without a name.

use anyhow::Result;
use serde_json::Value;

use crate::fixture::Observer;
use crate::sink::{Case, Expect, Sink, check};

/// A ClientHello of TLS 1.2 with one cipher suite.
fn hello(name: Option<&str>) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let server_name = name.map(|name| {
        let name = [&[0][..], &sized(name.as_bytes())].concat();
        [&[0, 0][..], &sized(&sized(&name))].concat()
    });
    // One that every client sends beside it: the groups that it knows.
    let groups = [&[0, 10][..], &sized(&sized(&[0, 29]))].concat();
    let extensions = sized(&[server_name.unwrap_or_default(), groups].concat());
    let body = [&[3, 3][..], &[7; 32], &[0], &sized(&[0xc0, 0x2f]), &[1, 0], &extensions].concat();
    let handshake = [&[1, 0][..], &sized(&body)].concat();
    [&[0x16, 3, 1][..], &sized(&handshake)].concat()
}

/// Pieces that are packets of their own.
fn case(name: &str, pieces: &[&[u8]], expect: Expect) -> Case {
    let mut cuts = Vec::new();
    for piece in pieces {
        cuts.push(cuts.last().copied().unwrap_or_default() + piece.len());
    }
    cuts.pop();
    Case { name: name.to_owned(), bytes: pieces.concat(), cuts, expect }
}

#[test]
fn tls_that_a_database_or_a_mail_server_is_asked_for_names_its_host() -> Result<()> {
    let hello = hello(Some("one.test"));
    let ssl_request = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let gss_request = b"\0\0\0\x08\x04\xd2\x16\x30";
    let one = || Expect::hosts(["one.test"]);
    let eight = [&b"other"[..]; 8];
    let cases = [
        case("at once", &[&hello], one()),
        case("PostgreSQL", &[ssl_request, &hello], one()),
        case("PostgreSQL, first without TLS", &[gss_request, ssl_request, &hello], one()),
        case("SMTP", &[b"EHLO client.test\r\n", b"STARTTLS\r\n", &hello[..50], &hello[50..]], one()),
        case("in the ninth packet", &[&eight[..], &[&hello]].concat(), one()),
        case("later", &[&eight[..], &[b"other", &hello]].concat(), Expect::default()),
        case(
            "a handshake that is no hello",
            &[ssl_request, b"\x16\x03\x01\0\x04\x02\0\0\0"],
            Expect::default(),
        ),
    ];
    check(&cases)?.must_be_complete()
}

#[test]
fn a_hello_that_names_nobody_is_remembered_beside_one_that_does() -> Result<()> {
    let sink = Sink::new(2)?;
    let bed = &sink.mesh.bed;
    let observer = Observer::start(bed, &bed.pods_cgroup(), &sink.inventory()?)?;
    let named = || hello(Some("sink.default.svc.cluster.local"));
    sink.send_to_one(0, [named()].into_iter())?;
    // Once would do; that there are many is told once.
    sink.send_to_one(1, [named()].into_iter().chain((0..200).map(|_| hello(None))))?;
    let results = observer.stop()?;
    results.must_be_complete()?;
    let ports = &results.graph["workloads"][0]["dependencies"][0]["ports"];
    let by_address = |port: &str| ports[port]["addressOnly"] == Value::Bool(true);
    assert_eq!((by_address("2001"), by_address("2002")), (false, true), "{ports}");
    sink.mesh.bed.end()
}
