//! What HTTP/1 allows and what it does not, and what comes before it.

use anyhow::Result;
use sidescope_tests::Cmd;

use crate::fixture::{Results, TESTBED};
use crate::sink::{Case, Expect, check, each_byte};

const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x1f\x90\x00\x50";

fn get(host: &str) -> Vec<u8> {
    format!("GET /a HTTP/1.1\r\nAccept: */*\r\nHost: {host}\r\nUser-Agent: x\r\n\r\n").into_bytes()
}

fn case(name: &str, bytes: impl AsRef<[u8]>, cuts: &[usize], expect: Expect) -> Case {
    Case { name: name.to_owned(), bytes: bytes.as_ref().to_vec(), cuts: cuts.to_vec(), expect }
}

/// Requests in packets of their own.
fn keep_alive(name: &str, requests: &[Vec<u8>], expect: Expect) -> Case {
    let ends = requests.iter().scan(0, |end, request| {
        *end += request.len();
        Some(*end)
    });
    let mut cuts: Vec<usize> = ends.collect();
    cuts.pop();
    Case { name: name.to_owned(), bytes: requests.concat(), cuts, expect }
}

#[test]
fn every_form_of_a_request_names_its_host() -> Result<()> {
    let one = || Expect::hosts(["one.test"]);
    let both = || Expect::hosts(["one.test", "two.test"]);
    let longest =
        format!("{}.test", ["a".repeat(62), "b".repeat(62), "c".repeat(62), "d".repeat(59)].join("."));
    assert_eq!(longest.len(), 253);
    let late = format!("GET / HTTP/1.1\r\nCookie: {}\r\nHost: one.test\r\n\r\n", "x".repeat(2_000));
    let absolute =
        "POST http://u:p@one.test/x HTTP/1.1\r\nHost: no.test\r\nContent-Length: 9\r\n\r\nbody\nbody";
    let line_behind = [absolute.as_bytes(), b"\r\n", &get("two.test")].concat();
    let webdav =
        "PROPFIND /x HTTP/1.1\r\nHost: one.test\r\n\r\nUNSUBSCRIBE /x HTTP/1.1\r\nHost: two.test\r\n\r\n";
    let webdav = webdav.to_owned();
    let fifty: Vec<String> = (0..50).map(|number| format!("host-{number}.test")).collect();
    let twice: Vec<Vec<u8>> = fifty.iter().chain(&fifty).map(|host| get(host)).collect();
    let two = [get("one.test"), get("two.test")];
    let cases = [
        case("first header, other case", "GET / HTTP/1.1\r\nhOST:ONE.test:80\r\nA: b\r\n\r\n", &[], one()),
        case(
            "last header",
            "GET / HTTP/1.1\r\nX-Host: no\r\nA: Host: no\r\nHost:  one.test \r\n\r\n",
            &[],
            one(),
        ),
        case("absolute", "GET http://one.test:80/x HTTP/1.1\r\nHost: no.test\r\n\r\n", &[], one()),
        case("CONNECT", "CONNECT one.test:443 HTTP/1.1\r\nHost: no.test\r\n\r\n", &[], one()),
        case("OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: one.test\r\n\r\n", &[], one()),
        case("DELETE", "DELETE /x HTTP/1.1\r\nHost: one.test\r\n\r\n", &[], one()),
        case("a method of Vault", "LIST /v1/x HTTP/1.1\r\nHost: one.test\r\n\r\n", &[], one()),
        case("methods of WebDAV", &webdav, &[], both()),
        keep_alive("again and again", &vec![webdav.clone().into_bytes(); 80], both()),
        case("an empty line before it", [&b"\r\n"[..], &get("one.test")].concat(), &[], one()),
        case("an empty line and a pause before it", [&b"\r\n"[..], &get("one.test")].concat(), &[2], one()),
        case("an empty line after a body", &line_behind, &[absolute.len()], both()),
        case("longest", get(&longest), &[], Expect::hosts([longest.as_str()])),
        case("beyond what the kernel searches", &late, &[], one()),
        case("beyond it, cut", &late, &[1_000, 2_010], one()),
        case(
            "PROXY v1",
            [&b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"[..], &get("one.test")].concat(),
            &[],
            one(),
        ),
        case("PROXY v2", [PROXY_V2, &get("one.test")].concat(), &[], one()),
        case(
            "PROXY v1, then the request",
            [&b"PROXY UNKNOWN\r\n"[..], &get("one.test")].concat(),
            &[15],
            one(),
        ),
        case("no host", "GET / HTTP/1.0\r\nAccept: */*\r\n\r\n", &[], Expect::default()),
        case("an address", get("10.0.0.1"), &[], Expect::default()),
        case(
            "no HTTP",
            b"\x20\0\0\x01\x85\xa6\xff\x01GET / HTTP/1.1\r\nHost: no.test\r\n\r\n",
            &[8],
            Expect::default(),
        ),
        keep_alive("fifty hosts, twice", &twice, Expect::hosts(fifty.iter().map(String::as_str))),
        keep_alive("after a body", &[absolute.into(), get("two.test")], both()),
        case("byte by byte, one after the other", two.concat(), &each_byte(1, &two.concat()), both()),
        case("a head in two, then another", two.concat(), &[30, two[0].len()], both()),
    ];
    check(&cases)?.must_be_complete()
}

#[test]
fn a_host_that_is_named_once_among_many_like_requests_is_found() -> Result<()> {
    // As fast as it goes, so that there are many of them in each millisecond; all are of the same length.
    let mut requests = vec![get("the-first.test"); 100];
    let mut hosts = vec!["the-first.test".to_owned()];
    for number in 10..50 {
        let host = format!("number-{number}.test");
        requests.push(get(&host));
        requests.extend(vec![get("the-first.test"); 20]);
        hosts.push(host);
    }
    let expect = Expect::hosts(hosts.iter().map(String::as_str));
    check(&[keep_alive("many", &requests, expect)])?.must_be_complete()
}

#[test]
fn another_protocol_is_no_request_whose_host_is_not_known() -> Result<()> {
    let cases = [
        case("NATS", "CONNECT {\"verbose\":false}\r\nPING\r\nPUB a 2\r\nhi\r\n", &[33], Expect::default()),
        case("POP3", "CAPA\r\nUSER a\r\nPASS b\r\n", &[6, 14], Expect::default()),
        case("SMTP", "EHLO a\r\nMAIL FROM:<a@b>\r\nDATA\r\n", &[8, 25], Expect::default()),
    ];
    check(&cases)?.must_be_complete()
}

#[test]
fn a_request_behind_an_extension_header_of_ipv6_names_its_host() -> Result<()> {
    let sink = crate::sink::Sink::new(1)?;
    let bed = &sink.mesh.bed;
    let observer = crate::fixture::Observer::start(bed, &bed.pods_cgroup(), &sink.inventory()?)?;
    let address = format!("[{}]:2001", sink.service.v6);
    let send = Cmd::new(TESTBED).args(["send", "--hop-by-hop", &address]).stdin(get("one.test"));
    sink.client.run(&send)?;
    let results = observer.stop()?;
    assert_eq!(crate::sink::seen(&results)?[&2001], Expect::hosts(["one.test"]));
    results.must_be_complete()?;
    sink.mesh.bed.end()
}

fn losses(results: &Results) -> &serde_json::Value {
    &results.graph["losses"]
}

#[test]
fn requests_behind_another_in_its_packet_are_found() -> Result<()> {
    let both = || Expect::hosts(["one.test", "two.test"]);
    let two = [get("one.test"), get("two.test")].concat();
    let absolute = [&b"GET http://one.test/ HTTP/1.1\r\n\r\n"[..], &get("two.test")].concat();
    // The empty line lies at an even and at an odd place.
    let odd = [&b"GET /ab HTTP/1.1\r\nHost: one.test\r\n\r\n"[..], &get("two.test")].concat();
    let even = [&b"GET /abc HTTP/1.1\r\nHost: one.test\r\n\r\n"[..], &get("two.test")].concat();
    let bare = String::from_utf8(two.clone())?.replace('\r', "");
    let mixed = [&b"GET /ab HTTP/1.1\r\nHost: one.test\n\r\n"[..], &get("two.test")].concat();
    let empty_line = odd.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let bare_line = bare.find("\n\n").expect("a head");
    let twelve: Vec<String> = (0..12).map(|number| format!("host-{number}.test")).collect();
    let at_once: Vec<u8> = twelve.iter().flat_map(|host| get(host)).collect();
    let mut cases = vec![
        case("two", &two, &[], both()),
        case("odd", &odd, &[], both()),
        case("even", &even, &[], both()),
        case("bare line feeds", &bare, &[], both()),
        case("a bare line feed before the empty line", &mixed, &[], both()),
        case("absolute", &absolute, &[], both()),
        case("the first begins in an earlier packet", &two, &[20], both()),
        case("the second ends in a later packet", &two, &[two.len() - 40], both()),
        case("twelve", &at_once, &[], Expect::hosts(twelve.iter().map(String::as_str))),
        case(
            "twelve in three packets",
            &at_once,
            &[300, 600],
            Expect::hosts(twelve.iter().map(String::as_str)),
        ),
    ];
    for behind in 1..4 {
        // Handed on in pieces, of which the first is too short to tell.
        let cuts = [5, empty_line + behind];
        cases.push(case(&format!("{behind} bytes into the empty line"), &odd, &cuts, both()));
        let cuts = [5, bare_line + behind.min(2)];
        cases.push(case(&format!("{behind} bytes into the bare empty line"), &bare, &cuts, both()));
    }
    check(&cases)?.must_be_complete()
}

#[test]
fn more_requests_in_a_packet_than_are_looked_at_are_told() -> Result<()> {
    let forty: Vec<u8> = (0..40).flat_map(|number| get(&format!("host-{:02}.test", number % 20))).collect();
    let seen: Vec<String> = (0..17).map(|number| format!("host-{number:02}.test")).collect();
    let expect = Expect::hosts(seen.iter().map(String::as_str)).and_unknown();
    let results = check(&[case("forty", forty, &[], expect)])?;
    assert_eq!(losses(&results), &serde_json::json!({ "pipelined": 1 }));
    Ok(())
}

#[test]
fn a_host_that_is_out_of_reach_is_told() -> Result<()> {
    let far = format!("GET / HTTP/1.1\r\nCookie: {}\r\nHost: one.test\r\n\r\n", "x".repeat(5_000));
    let v2 = [PROXY_V2, &get("one.test")].concat();
    let unknown = || Expect::default().and_unknown();
    let cases = [
        case("in one write", &far, &[], unknown()),
        case("in three", &far, &[1_500, 3_000], unknown()),
        case("malformed", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", &[], unknown()),
        case("never finished", "GET / HTTP/1.1\r\nHo", &[], unknown()),
        case("PROXY v1 in pieces", [&b"PROXY UNKNOWN\r\n"[..], &get("one.test")].concat(), &[3], unknown()),
        case("PROXY v2 in pieces", &v2, &[4], unknown()),
        case("PROXY v2 in other pieces", &v2, &[5], unknown()),
        case("PROXY v2 in larger pieces", &v2, &[13], unknown()),
    ];
    let expect = serde_json::json!({
        "headTooLong": 2, "headMalformed": 2, "headMissingPiece": 1, "packetUnreadable": 3,
    });
    assert_eq!(losses(&check(&cases)?), &expect);
    Ok(())
}

#[test]
fn hosts_beyond_the_budget_are_told() -> Result<()> {
    const CLIENTS: usize = 8;
    const EACH: usize = 50;
    let case = |client| {
        let requests: Vec<_> = (0..EACH).map(|number| get(&format!("host-{client}-{number}.test"))).collect();
        keep_alive("many", &requests, Expect::default())
    };
    let cases: Vec<Case> = (0..CLIENTS).map(case).collect();
    let sink = crate::sink::Sink::new(1)?;
    let cgroup = sink.mesh.bed.pods_cgroup();
    let observer = crate::fixture::Observer::start(&sink.mesh.bed, &cgroup, &sink.inventory()?)?;
    // At once, so that they are far more than the 64 a second that the edge has, however busy the machine is.
    std::thread::scope(|scope| {
        let sending: Vec<_> =
            cases.iter().map(|case| scope.spawn(|| sink.send(0, std::slice::from_ref(case)))).collect();
        sending.into_iter().try_for_each(|sent| sent.join().expect("no panic"))
    })?;
    let results = observer.stop()?;
    let seen = crate::sink::seen(&results)?;
    let (_, edge) = seen.first_key_value().expect("one edge");
    let lost = |name: &str| losses(&results)[name].as_u64().unwrap_or_default() as usize;
    let over = lost("headBudget");
    assert!(edge.unknown && edge.hosts.len() >= 64 && over > 0, "{} found, {over} over", edge.hosts.len());
    // The last are those that an edge has no room for, if four seconds have passed all the same.
    // One over the budget that TCP sends again may count in both ways.
    let hit = crate::fixture::list(&results.graph["workloads"][0]["losses"]);
    assert!(hit.contains(&"headBudget".into()), "{hit:?}");
    let told = edge.hosts.len() + over + lost("tooManyHosts");
    assert!((CLIENTS * EACH..CLIENTS * EACH + 10).contains(&told), "{told}");
    sink.mesh.bed.end()
}

#[test]
fn an_edge_with_more_connects_than_are_looked_at_is_marked_and_still_looked_at() -> Result<()> {
    let sink = crate::sink::Sink::new(1)?;
    let bed = &sink.mesh.bed;
    let observer = crate::fixture::Observer::start(bed, &bed.pods_cgroup(), &sink.inventory()?)?;
    let address = format!("{}:2001", sink.service.v4);
    // For more than a hundred ticks of any kernel's clock.
    let knock = ["knock", &address, "one.test", "2500", "two.test", "3000"];
    let out = sink.client.run(&Cmd::new(TESTBED).args(knock))?;
    let made: u64 = String::from_utf8(out.stdout)?.trim().parse()?;
    let results = observer.stop()?;
    let seen = crate::sink::seen(&results)?;
    // A slow machine makes less than one in a tick.
    let is_marked = results.graph["workloads"][0]["losses"] == serde_json::json!(["searchBudget"]);
    let expect = Expect { unknown: is_marked, ..Expect::hosts(["one.test", "two.test"]) };
    assert_eq!(seen[&2001], expect);
    assert_eq!(losses(&results)["searchBudget"].as_u64(), is_marked.then_some(1));
    let port = &results.graph["workloads"][0]["dependencies"][0]["ports"]["2001"];
    assert_eq!(port["connects"], made, "every connect counts: {port}");
    sink.mesh.bed.end()
}

#[test]
fn each_connect_of_an_edge_with_several_hosts_is_looked_at() -> Result<()> {
    let mut hosts = vec!["one.test".to_owned(), "two.test".to_owned()];
    // More than are looked at where one host was named, as fast as it goes.
    hosts.extend(vec!["one.test".to_owned(); 1200]);
    for number in 0..40 {
        hosts.push(format!("host-{number}.test"));
        hosts.extend(vec!["one.test".to_owned(); 20]);
    }
    let sink = crate::sink::Sink::new(1)?;
    let bed = &sink.mesh.bed;
    let observer = crate::fixture::Observer::start(bed, &bed.pods_cgroup(), &sink.inventory()?)?;
    sink.send_to_one(0, hosts.iter().map(|host| get(host)))?;
    let results = observer.stop()?;
    let expect = Expect::hosts(hosts.iter().map(String::as_str));
    assert_eq!(crate::sink::seen(&results)?[&2001], expect);
    results.must_be_complete()?;
    sink.mesh.bed.end()
}
