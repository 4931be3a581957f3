//! What the load generator sends: requests that name a host, in every form.

/// A form in which requests name their hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// HTTP/1, a connection for each request.
    Http1,
    /// HTTP/1, many hosts on one connection.
    KeepAlive,
    /// HTTP/1, many requests in one packet.
    Pipelined,
    /// HTTP/1, a head in three packets.
    Pieces,
    /// HTTP/1, the host in the target.
    Absolute,
    /// HTTP/1, a tunnel to the host.
    Connect,
    /// HTTP/1 behind a header of the PROXY protocol.
    Proxied,
    /// HTTP/2, the authority as plain bytes.
    H2Literal,
    /// HTTP/2, the authority in HPACK's Huffman code.
    H2Huffman,
    /// HTTP/2, the authority in a HEADERS frame and a CONTINUATION.
    H2Continuation,
    /// HTTP/2, the HEADERS behind a DATA frame in their packet.
    H2BehindData,
    /// HTTP/1, upgraded to HTTP/2.
    H2Upgrade,
    /// The server name in a TLS ClientHello.
    Tls,
    /// A ClientHello in three packets, with the name in the last.
    TlsPieces,
}

/// Hosts of a connection that names many.
const MANY: u32 = 20;

impl Form {
    /// All of them.
    pub(super) const ALL: [Self; 14] = [
        Self::Http1,
        Self::KeepAlive,
        Self::Pipelined,
        Self::Pieces,
        Self::Absolute,
        Self::Connect,
        Self::Proxied,
        Self::H2Literal,
        Self::H2Huffman,
        Self::H2Continuation,
        Self::H2BehindData,
        Self::H2Upgrade,
        Self::Tls,
        Self::TlsPieces,
    ];

    /// Its name in the results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::KeepAlive => "http1 keep-alive",
            Self::Pipelined => "http1 pipelined",
            Self::Pieces => "http1 in pieces",
            Self::Absolute => "http1 absolute",
            Self::Connect => "http1 CONNECT",
            Self::Proxied => "http1 PROXY",
            Self::H2Literal => "h2 literal",
            Self::H2Huffman => "h2 huffman",
            Self::H2Continuation => "h2 continuation",
            Self::H2BehindData => "h2 behind data",
            Self::H2Upgrade => "h2c upgrade",
            Self::Tls => "tls sni",
            Self::TlsPieces => "tls in pieces",
        }
    }

    /// Hosts that one connection names.
    pub(super) fn hosts_per_connection(self) -> u32 {
        match self {
            Self::Http1
            | Self::Pieces
            | Self::Absolute
            | Self::Connect
            | Self::Proxied
            | Self::Tls
            | Self::TlsPieces => 1,
            Self::KeepAlive
            | Self::Pipelined
            | Self::H2Literal
            | Self::H2Huffman
            | Self::H2Continuation
            | Self::H2BehindData
            | Self::H2Upgrade => MANY,
        }
    }

    /// The host with this number. In Huffman code, only letters for which there is an entry below.
    pub(super) fn host(self, number: u32) -> String {
        let prefix = match self {
            Self::H2Huffman => "h".to_owned(),
            _ => format!("{}-", self.name().replace(' ', "-").to_lowercase()),
        };
        format!("{prefix}{number}.test")
    }

    /// What is written on a connection to name these hosts; each write waits for the answer to the one before it, and so is a packet.
    pub(super) fn writes(self, hosts: &[String]) -> Vec<Vec<u8>> {
        let each = |write: &dyn Fn(u32, &str) -> Vec<u8>| -> Vec<Vec<u8>> {
            hosts.iter().zip(0..).map(|(host, index)| write(index, host)).collect()
        };
        match self {
            Self::Http1 | Self::KeepAlive => each(&|_, host| get(host)),
            // A packet may hold 16 requests.
            Self::Pipelined => hosts
                .chunks(10)
                .map(|hosts| hosts.iter().flat_map(|host| get(host)).collect::<Vec<u8>>())
                .collect(),
            Self::Pieces => hosts.iter().flat_map(|host| in_three(&get(host))).collect(),
            Self::Absolute => each(&|_, host| {
                format!("GET http://{host}/path HTTP/1.1\r\nHost: no.test\r\n\r\n").into_bytes()
            }),
            Self::Connect => {
                each(&|_, host| format!("CONNECT {host}:443 HTTP/1.1\r\nHost: no.test\r\n\r\n").into_bytes())
            }
            Self::Proxied => {
                each(&|_, host| [b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", get(host).as_slice()].concat())
            }
            Self::H2Literal => each(&|index, host| http2(index, &frames(index, host, Block::Whole))),
            Self::H2Huffman => each(&|index, host| http2(index, &frames(index, host, Block::Huffman))),
            Self::H2Continuation => each(&|index, host| http2(index, &frames(index, host, Block::Continued))),
            Self::H2BehindData => each(&|index, host| {
                let data = [&[0, 0, 4, 0, 0, 0, 0, 0, 1][..], b"data"].concat();
                http2(index, &[data, frames(index, host, Block::Whole)].concat())
            }),
            Self::H2Upgrade => each(&|index, host| {
                match index {
                0 => format!(
                    "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \
                     AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
                )
                .into_bytes(),
                _ => http2(index - 1, &frames(index, host, Block::Whole)),
            }
            }),
            Self::Tls => each(&|_, host| client_hello(host, 0)),
            // As long as a post-quantum key share makes it.
            Self::TlsPieces => hosts.iter().flat_map(|host| in_three(&client_hello(host, 1200))).collect(),
        }
    }
}

fn get(host: &str) -> Vec<u8> {
    format!("GET /path HTTP/1.1\r\nUser-Agent: bench\r\nHost: {host}\r\nAccept: */*\r\n\r\n").into_bytes()
}

fn in_three(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.chunks(bytes.len().div_ceil(3)).map(<[u8]>::to_vec).collect()
}

/// With the connection preface before the first frames.
fn http2(index: u32, frames: &[u8]) -> Vec<u8> {
    let preface: &[u8] =
        if index == 0 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" } else { b"" };
    [preface, frames].concat()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Whole,
    Huffman,
    Continued,
}

/// The header block of a request, in one frame or in two.
fn frames(index: u32, host: &str, form: Block) -> Vec<u8> {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let (value, huffman_bit) =
        if form == Block::Huffman { (huffman(host), 0x80) } else { (host.as_bytes().to_vec(), 0) };
    // :method GET, :scheme http, :path /, then :authority, literal with incremental indexing.
    let mut block = vec![0x82, 0x86, 0x84, 0x41, short(value.len()) | huffman_bit];
    block.extend(value);
    let frame = |kind: u8, flags: u8, bytes: &[u8]| {
        [&[0, 0, short(bytes.len()), kind, flags][..], &(index * 2 + 1).to_be_bytes(), bytes].concat()
    };
    if form == Block::Continued {
        let (first, second) = block.split_at(block.len() - 6);
        return [frame(HEADERS, END_STREAM, first), frame(CONTINUATION, END_HEADERS, second)].concat();
    }
    frame(HEADERS, END_STREAM | END_HEADERS, &block)
}

/// HPACK's code for the bytes of our hosts (RFC 7541, appendix B), padded with ones.
fn huffman(text: &str) -> Vec<u8> {
    let mut bits = String::new();
    for byte in text.bytes() {
        let (code, len): (u32, usize) = match byte {
            b'0'..=b'2' => (u32::from(byte - b'0'), 5),
            b'3'..=b'9' => (0x19 + u32::from(byte - b'3'), 6),
            b'a' => (3, 5),
            b'c' => (4, 5),
            b'e' => (5, 5),
            b's' => (8, 5),
            b't' => (9, 5),
            b'.' => (0x17, 6),
            b'h' => (0x27, 6),
            _ => unreachable!("no code for {byte}: hosts are made of other letters"),
        };
        bits.push_str(&format!("{code:0len$b}"));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let byte = |at: usize| u8::from_str_radix(&bits[at..at + 8], 2).expect("eight bits");
    (0..bits.len()).step_by(8).map(byte).collect()
}

/// With so many bytes of padding in an extension before the name.
fn client_hello(name: &str, padding: u16) -> Vec<u8> {
    const PADDING: u16 = 21;
    const SERVER_NAME: u16 = 0;
    let extension = |kind: u16, bytes: &[u8]| [&kind.to_be_bytes()[..], &prefixed(bytes)].concat();
    let mut extensions = Vec::new();
    if padding > 0 {
        extensions.extend(extension(PADDING, &vec![0; padding.into()]));
    }
    let host_name = [&[0][..], &prefixed(name.as_bytes())].concat();
    extensions.extend(extension(SERVER_NAME, &prefixed(&host_name)));
    // Version, random, no session, one cipher suite, no compression.
    let mut body = vec![3, 3];
    body.extend([0x5a; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(prefixed(&extensions));
    let handshake = [&[1, 0][..], &prefixed(&body)].concat();
    [&[0x16, 3, 1][..], &prefixed(&handshake)].concat()
}

/// The bytes behind their number in two bytes.
fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("a hello is short");
    [&len.to_be_bytes()[..], bytes].concat()
}

fn short(len: usize) -> u8 {
    u8::try_from(len).expect("hosts are short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_huffman_code_is_that_of_hpack() {
        // a 00011, 0 00000, e 00101, s 01000, . 010111, and ones.
        assert_eq!(huffman("a0"), [0b0001_1000, 0b0011_1111]);
        assert_eq!(huffman("es."), [0b0010_1010, 0b0001_0111]);
    }

    #[test]
    fn lengths_in_a_client_hello_fit() {
        for padding in [0, 1200] {
            let hello = client_hello("s1.test", padding);
            let number = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
            assert_eq!((number(3) + 5, number(7) + 9), (hello.len(), hello.len()));
            assert!(hello.ends_with(b"s1.test"));
        }
    }

    #[test]
    fn hosts_differ_by_form_and_number() {
        let mut hosts: Vec<String> =
            Form::ALL.iter().flat_map(|form| (0..20).map(|n| form.host(n))).collect();
        hosts.sort();
        hosts.dedup();
        assert_eq!(hosts.len(), 20 * Form::ALL.len());
    }
}
