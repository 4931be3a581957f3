//! Messages put together here; those of real servers are in `observer/samples`.

use proptest::prelude::*;

use super::*;

const A_TYPE: u16 = 1;
const CNAME_TYPE: u16 = 5;
const TXT_TYPE: u16 = 16;
const AAAA_TYPE: u16 = 28;
const RESPONSE: u16 = 0x8180;

/// A message without compression of names.
struct Build {
    flags: u16,
    question: Vec<u8>,
    questions: u16,
    answers: Vec<Vec<u8>>,
}

fn wire(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.') {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

fn asked(name: &str, kind: u16) -> Build {
    let question = [wire(name), kind.to_be_bytes().to_vec(), vec![0, 1]].concat();
    Build { flags: RESPONSE, question, questions: 1, answers: Vec::new() }
}

impl Build {
    fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    fn record(mut self, owner: &str, kind: u16, class: u16, ttl: u32, data: &[u8]) -> Self {
        let head = [wire(owner), kind.to_be_bytes().to_vec(), class.to_be_bytes().to_vec()].concat();
        let len = (data.len() as u16).to_be_bytes();
        self.answers.push([&head[..], &ttl.to_be_bytes(), &len, data].concat());
        self
    }

    fn a(self, owner: &str, ttl: u32, last: u8) -> Self {
        self.record(owner, A_TYPE, 1, ttl, &[10, 0, 0, last])
    }

    fn cname(self, owner: &str, ttl: u32, target: &str) -> Self {
        self.record(owner, CNAME_TYPE, 1, ttl, &wire(target))
    }

    fn bytes(&self) -> Vec<u8> {
        let head = [0x1234, self.flags, self.questions, self.answers.len() as u16, 0, 0];
        let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_be_bytes()).collect();
        for _ in 0..self.questions {
            bytes.extend_from_slice(&self.question);
        }
        bytes.extend(self.answers.concat());
        bytes
    }

    fn answer(&self) -> Result<Option<Answer>, DnsError> {
        answer(&self.bytes())
    }
}

fn answered(question: &str, addresses: &[(u8, u64)]) -> Result<Option<Answer>, DnsError> {
    let addresses =
        addresses.iter().map(|(last, ttl)| ([10, 0, 0, *last].into(), Duration::from_secs(*ttl))).collect();
    Ok(Some(Answer { question: Host::new(question).unwrap(), addresses, nxdomain: false }))
}

#[test]
fn the_name_asked_for_gets_the_addresses_at_the_end_of_its_chain() {
    let chain = asked("Shop.Example", A_TYPE)
        .a("cdn.example", 300, 1)
        .cname("edge.example", 20, "CDN.example")
        .a("cdn.example", 10, 2)
        .cname("shop.example", 60, "edge.example");
    assert_eq!(chain.answer(), answered("shop.example", &[(1, 20), (2, 10)]));
    assert_eq!(asked("a.b", A_TYPE).a("a.b", 5, 1).answer(), answered("a.b", &[(1, 5)]));
}

#[test]
fn records_beside_the_chain_are_ignored() {
    let beside =
        asked("a.b", A_TYPE).a("other.b", 5, 9).cname("other.b", 5, "c.b").a("c.b", 5, 8).a("a.b", 5, 1);
    assert_eq!(beside.answer(), answered("a.b", &[(1, 5)]));
    // An alias has no addresses of its own.
    let of_alias = asked("a.b", A_TYPE).a("a.b", 5, 1).cname("a.b", 5, "c.b").a("c.b", 5, 2);
    assert_eq!(of_alias.answer(), answered("a.b", &[(2, 5)]));
    let chaos = asked("a.b", A_TYPE).record("a.b", A_TYPE, 3, 5, &[10, 0, 0, 9]).a("a.b", 5, 1);
    assert_eq!(chaos.answer(), answered("a.b", &[(1, 5)]));
}

#[test]
fn ipv6_and_no_such_name() {
    let address = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap();
    let v6 = asked("a.b", AAAA_TYPE).record("a.b", AAAA_TYPE, 1, 5, &address.octets());
    assert_eq!(v6.answer().unwrap().unwrap().addresses, [(IpAddr::V6(address), Duration::from_secs(5))]);
    let none = asked("a.b", A_TYPE).flags(RESPONSE | 3).answer().unwrap().unwrap();
    assert_eq!((none.question.as_str(), none.addresses.len(), none.nxdomain), ("a.b", 0, true));
}

#[test]
fn a_lifetime_with_the_highest_bit_is_zero() {
    assert_eq!(asked("a.b", A_TYPE).a("a.b", 1 << 31, 1).answer(), answered("a.b", &[(1, 0)]));
    assert_eq!(
        asked("a.b", A_TYPE).a("a.b", i32::MAX as u32, 1).answer(),
        answered("a.b", &[(1, i32::MAX as u64)])
    );
}

#[test]
fn what_tells_no_addresses() {
    assert_eq!(asked("a.b", A_TYPE).answer(), Ok(None));
    assert_eq!(asked("a.b", A_TYPE).flags(RESPONSE | 2).a("a.b", 5, 1).answer(), Ok(None), "a failure");
    assert_eq!(asked("a.b", TXT_TYPE).a("a.b", 5, 1).answer(), Ok(None), "another type");
    assert_eq!(asked("a.b", A_TYPE).cname("a.b", 5, "c.b").answer(), Ok(None), "a chain that leads nowhere");
}

#[test]
fn what_cannot_be_used_says_why() {
    let fine = || asked("a.b", A_TYPE).a("a.b", 5, 1);
    for (message, error) in [
        (fine().flags(0x0100), DnsError::NotAResponse),
        (fine().flags(RESPONSE | 0x2800), DnsError::NotAResponse),
        (fine().flags(RESPONSE | 0x0200), DnsError::Truncated),
        (Build { question: [wire("a.b"), vec![0, 1, 0, 3]].concat(), ..fine() }, DnsError::OtherClass),
        (Build { questions: 0, ..fine() }, DnsError::Malformed),
        (Build { questions: 2, ..fine() }, DnsError::Malformed),
        (fine().record("a.b", A_TYPE, 1, 5, &[10, 0, 0]), DnsError::Malformed),
        (fine().record("a.b", A_TYPE, 1, 5, &[10, 0, 0, 1, 2]), DnsError::Malformed),
        (asked("a b", A_TYPE).a("a b", 5, 1), DnsError::BadName),
        (asked("*.b", A_TYPE).a("*.b", 5, 1), DnsError::BadName),
        (asked("a.b", A_TYPE).cname("a.b", 5, "c.b").cname("c.b", 5, "a.b"), DnsError::Malformed),
    ] {
        assert_eq!(message.answer(), Err(error), "{:02x?}", message.bytes());
    }
    // A dot in a label is not the one between labels.
    let mut dotted = asked("axb.c", A_TYPE).a("axb.c", 5, 1).bytes();
    for start in (0..dotted.len() - 3).rev() {
        if dotted[start..].starts_with(b"axb") {
            dotted[start + 1] = b'.';
        }
    }
    assert_eq!(answer(&dotted), Err(DnsError::BadName));
}

#[test]
fn names_that_point_at_themselves_end() {
    let mut looping = asked("a.b", A_TYPE).a("a.b", 5, 1).bytes();
    looping.splice(12..17, [0xc0, 12]);
    assert_eq!(answer(&looping), Err(DnsError::Malformed));
}

#[test]
fn chains_are_followed_as_far_as_resolvers_do() {
    let chain = |len: usize| {
        let chain = (0..len).fold(asked("n0.b", A_TYPE), |chain, i| {
            chain.cname(&format!("n{i}.b"), 5, &format!("n{}.b", i + 1))
        });
        chain.a(&format!("n{len}.b"), 5, 1).answer()
    };
    assert_eq!(chain(MAX_CHAIN), answered("n0.b", &[(1, 5)]));
    assert_eq!(chain(MAX_CHAIN + 1), Err(DnsError::Malformed));
}

#[test]
fn every_prefix_of_a_message_is_malformed() {
    let whole = asked("a.b", A_TYPE).cname("a.b", 5, "c.b").a("c.b", 5, 1).bytes();
    for len in 0..whole.len() {
        assert_eq!(answer(&whole[..len]), Err(DnsError::Malformed), "prefix of {len}");
    }
}

#[test]
fn messages_are_cut_off_a_stream() {
    let message = asked("a.b", A_TYPE).a("a.b", 5, 1).bytes();
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let stream = [&framed[..], &framed].concat();
    for len in 0..framed.len() {
        assert_eq!(tcp_message(&stream[..len]), Ok(None), "prefix of {len}");
    }
    for len in framed.len()..=stream.len() {
        assert_eq!(tcp_message(&stream[..len]), Ok(Some((&message[..], framed.len()))));
    }
    assert_eq!(tcp_message(&[0, 11]), Err(DnsError::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = answer(&bytes);
        let _ = tcp_message(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_question_give_an_answer(
        records in proptest::collection::vec(any::<u8>(), 0..600),
        count: u16,
    ) {
        let mut bytes = asked("a.b", A_TYPE).bytes();
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(&records);
        let _ = answer(&bytes);
    }
}
