//! Of what workloads send only hosts get anywhere: not into results or logs, and not into what other programs can read of the
//! kernel's maps.

use std::collections::BTreeSet;
use std::{fs, slice};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidescope_tests::{Cmd, Proc};

use crate::fixture::{Observer, sidescope};
use crate::sink::{Case, Expect, Sink, each_byte, seen};

/// A text that nothing else can have.
fn marker() -> Result<String> {
    let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(random.trim().replace('-', "x"))
}

/// A frame of HTTP/2.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
}

/// A field that is not added to the table and not in Huffman code.
fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn cases(marker: &str) -> Vec<Case> {
    let headers = format!(
        "Cookie: c={marker}\r\nAuthorization: Bearer {marker}\r\nHost: one.test\r\nX-A: {marker}\r\n"
    );
    let get = format!("GET /{marker}?q={marker} HTTP/1.1\r\n{headers}\r\n");
    let absolute = format!("GET http://u:{marker}@one.test/{marker} HTTP/1.1\r\n{headers}\r\n");
    let post =
        format!("POST /{marker} HTTP/1.1\r\n{headers}Content-Length: 3000\r\n\r\n{}", marker.repeat(60));
    let body = post.find("\r\n\r\n").unwrap_or_default() + 50;
    let malformed = format!("GET /{marker} HTTP/1.1\r\nHost: {marker} {marker}\r\n\r\n");
    let block = [
        field(":path", marker),
        field(":authority", "one.test"),
        field("cookie", marker),
        field("grpc-tag", marker),
    ];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let http2 = [&preface[..], &frame(1, &block.concat()), &frame(0, marker.repeat(9).as_bytes())].concat();
    let hello = [b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03", marker.repeat(6).as_bytes()].concat();
    let ways: [(&str, Vec<u8>, Vec<usize>); 10] = [
        ("http2, cut", http2.clone(), vec![60, 100]),
        ("http2", http2, vec![]),
        ("hello", hello.clone(), vec![]),
        ("hello, cut", hello, vec![20, 60]),
        ("malformed", malformed.into(), vec![]),
        ("get, byte by byte", get.clone().into(), each_byte(1, get.as_bytes())),
        ("absolute", absolute.into(), vec![]),
        ("post", post.clone().into(), vec![]),
        ("post, cut", post.into(), vec![100, body]),
        ("get", get.into(), vec![]),
    ];
    let case = |(name, bytes, cuts): (&str, _, _)| Case {
        name: name.to_owned(),
        bytes,
        cuts,
        expect: Expect::default(),
    };
    ways.into_iter().map(case).collect()
}

/// All bytes of a map, as bpftool prints them: for per-CPU maps those of every CPU.
fn bytes(value: &Value, found: &mut Vec<u8>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| bytes(item, found)),
        // Beside the bytes there is a form for people, with the same in it.
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| *name != "formatted").for_each(|(_, item)| bytes(item, found));
        }
        Value::String(text) => {
            found.extend(text.strip_prefix("0x").and_then(|hex| u8::from_str_radix(hex, 16).ok()));
        }
        _ => {}
    }
}

/// Ids of the maps that a process holds.
fn maps(process: &Proc) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", process.pid()))? {
        // A descriptor may have been closed since.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| Some(line.strip_prefix("map_id:")?.trim().to_owned())));
    }
    Ok(ids)
}

fn dump(process: &Proc) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    for id in maps(process)? {
        let Ok(output) = Cmd::new("bpftool").args(["-j", "map", "dump", "id", &id]).run() else {
            // Rings and arrays of programs have nothing that could be looked up.
            continue;
        };
        bytes(&serde_json::from_slice(&output.stdout).with_context(|| format!("map {id}"))?, &mut found);
    }
    Ok(found)
}

#[test]
fn nothing_but_hosts_gets_anywhere() -> Result<()> {
    let marker = marker()?;
    let cases = cases(&marker);
    let sink = Sink::new(cases.len())?;
    let cmd = Cmd::new(sidescope()?).env("RUST_LOG", "trace");
    let bed = &sink.mesh.bed;
    let observer = Observer::start_as(cmd, bed, &bed.pods_cgroup(), &sink.inventory()?, &[])?;
    for (number, case) in cases.iter().enumerate() {
        sink.send(number, slice::from_ref(case)).with_context(|| case.name.clone())?;
        let dumped = dump(&observer.process)?;
        // What must be there is: addresses of the edges.
        let known = sink.service.v4.octets();
        ensure!(dumped.windows(4).any(|window| window == known), "the maps are empty");
        for part in marker.as_bytes().windows(6) {
            let kept = dumped.windows(part.len()).any(|window| window == part);
            ensure!(!kept, "after `{}` a map holds a part of the marker", case.name);
        }
    }
    let results = observer.stop()?;
    let known = seen(&results)?.values().filter(|edge| edge.hosts.contains("one.test")).count();
    ensure!(known == 7, "{known} edges with a host: {:?}", seen(&results)?);
    ensure!(results.said.contains("TRACE") || results.said.contains("INFO"), "{}", results.said);
    for text in results.files.values().chain([&results.said]) {
        ensure!(!text.contains(&marker), "{text}");
    }
    sink.mesh.bed.end()
}
