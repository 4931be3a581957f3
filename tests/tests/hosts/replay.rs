//! The samples of real clients, sent again: whole, cut, and byte by byte.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::sink::{Case, Expect, check, each_byte};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Deserialize)]
struct Sample {
    file: String,
    kind: String,
    hosts: Vec<String>,
}

/// The samples of requests with their bytes.
fn samples() -> Result<Vec<(Sample, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../observer/samples");
    let samples: Vec<Sample> = serde_json::from_slice(&std::fs::read(folder.join("samples.json"))?)?;
    let requests = samples.into_iter().filter(|sample| !sample.kind.starts_with("dns"));
    requests.map(|sample| Ok((std::fs::read(folder.join(&sample.file))?, sample))).map(swap).collect()
}

fn swap<A, B>(pair: Result<(A, B)>) -> Result<(B, A)> {
    pair.map(|(a, b)| (b, a))
}

/// Where requests of HTTP/1 begin, and HTTP/2 after an upgrade: the client had waited there.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let begins = |at: &usize| {
        let rest = &bytes[*at..];
        let line = rest.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let method = ["GET ", "POST ", "CONNECT "].iter().any(|method| rest.starts_with(method.as_bytes()));
        rest.starts_with(PREFACE) || (method && line.ends_with(b" HTTP/1.1"))
    };
    (1..bytes.len()).filter(begins).collect()
}

#[test]
fn hosts_of_real_clients_are_found_wherever_packets_end() -> Result<()> {
    let mut cases = Vec::new();
    let mut in_bytes: Vec<String> = Vec::new();
    for (sample, bytes) in samples()? {
        let http2 = sample.kind == "http2";
        let starts = if sample.kind == "tls" || http2 { vec![] } else { starts(&bytes) };
        // A preface is written at once. One that is not makes the edge incomplete: see `a_preface_in_pieces_is_told`.
        let first = if http2 { PREFACE.len() } else { 1 };
        let mut ways: Vec<(String, Vec<usize>)> = vec![("whole".to_owned(), vec![])];
        let len = bytes.len();
        for cut in [first, first + 6, first + 15, 60, 100, len / 3, len / 2, len * 3 / 4, len - 1] {
            ways.push((format!("cut at {cut}"), vec![cut.clamp(first, len - 1)]));
        }
        ways.push(("in tens".to_owned(), (first..len.min(4000)).step_by(10).collect()));
        if !in_bytes.contains(&sample.kind) && len < 2500 {
            let from = match sample.kind.as_str() {
                "http2" => first,
                // The preface after an upgrade comes at once, too.
                "h2c" | "proxy-http1" => continue,
                _ => 1,
            };
            ways.push(("byte by byte".to_owned(), each_byte(from, &bytes)));
            in_bytes.push(sample.kind.clone());
        }
        for (way, mut cuts) in ways {
            // What the client has written after an answer is a packet of its own.
            cuts.extend(&starts);
            if sample.kind == "h2c" {
                let preface = bytes.windows(PREFACE.len()).position(|window| window == PREFACE);
                cuts.retain(|cut| preface.is_none_or(|at| *cut <= at || *cut >= at + PREFACE.len()));
            }
            cuts.sort_unstable();
            cuts.dedup();
            let expect = Expect::hosts(sample.hosts.iter().map(String::as_str));
            cases.push(Case { name: format!("{}, {way}", sample.file), bytes: bytes.clone(), cuts, expect });
        }
    }
    assert!(cases.len() > 200 && in_bytes.len() >= 3, "{} {in_bytes:?}", cases.len());
    check(&cases)?.must_be_complete()
}

#[test]
fn a_preface_in_pieces_is_told() -> Result<()> {
    let (_, bytes) = samples()?.into_iter().find(|(sample, _)| sample.kind == "http2").expect("a sample");
    let case =
        Case { name: "preface".to_owned(), bytes, cuts: vec![3], expect: Expect::default().and_unknown() };
    assert_eq!(check(&[case])?.graph["losses"], serde_json::json!({ "headMalformed": 1 }));
    Ok(())
}
