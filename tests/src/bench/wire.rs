//! What the load generator sends: requests that name a host, in every form.

/// A form in which a request names its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// HTTP/1, a connection for each request.
    Http1,
    /// HTTP/1, many hosts on one connection.
    KeepAlive,
    /// HTTP/2, the authority as plain bytes.
    H2Literal,
    /// HTTP/2, the authority in HPACK's Huffman code.
    H2Huffman,
    /// The server name in a TLS ClientHello.
    Tls,
}

impl Form {
    /// All of them.
    pub(super) const ALL: [Self; 5] =
        [Self::Http1, Self::KeepAlive, Self::H2Literal, Self::H2Huffman, Self::Tls];

    /// Its name in the results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::KeepAlive => "http1 keep-alive",
            Self::H2Literal => "h2 literal",
            Self::H2Huffman => "h2 huffman",
            Self::Tls => "tls sni",
        }
    }

    /// Hosts that one connection names.
    pub(super) fn hosts_per_connection(self) -> u32 {
        match self {
            Self::Http1 | Self::Tls => 1,
            Self::KeepAlive | Self::H2Literal | Self::H2Huffman => 20,
        }
    }

    /// The host with this number. Only letters for which the Huffman code below has an entry.
    pub(super) fn host(self, number: u32) -> String {
        let letter = match self {
            Self::Http1 => 'a',
            Self::KeepAlive => 'c',
            Self::H2Literal => 'e',
            Self::H2Huffman => 'h',
            Self::Tls => 's',
        };
        format!("{letter}{number}.test")
    }

    /// What is sent for the request with this index on its connection.
    pub(super) fn request(self, index: u32, host: &str) -> Vec<u8> {
        match self {
            Self::Http1 | Self::KeepAlive => {
                format!("GET /path HTTP/1.1\r\nUser-Agent: bench\r\nHost: {host}\r\nAccept: */*\r\n\r\n")
                    .into_bytes()
            }
            Self::H2Literal => http2(index, host, false),
            Self::H2Huffman => http2(index, host, true),
            Self::Tls => client_hello(host),
        }
    }
}

fn http2(index: u32, host: &str, is_huffman: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    if index == 0 {
        bytes.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    }
    let value = if is_huffman { huffman(host) } else { host.as_bytes().to_vec() };
    // :method GET, :scheme http, :path /, then :authority, literal with incremental indexing.
    let mut block = vec![0x82, 0x86, 0x84, 0x41, short(value.len()) | if is_huffman { 0x80 } else { 0 }];
    block.extend(value);
    bytes.extend([0, 0, short(block.len()), 1, 0x05]);
    bytes.extend((index * 2 + 1).to_be_bytes());
    bytes.extend(block);
    bytes
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

fn client_hello(name: &str) -> Vec<u8> {
    let name = name.as_bytes();
    let mut server_name = vec![0, 0];
    for len in [name.len() + 5, name.len() + 3] {
        server_name.extend([0, short(len)]);
    }
    server_name.extend([0, 0, short(name.len())]);
    server_name.extend(name);
    // Version, random, no session, one cipher suite, no compression.
    let mut body = vec![3, 3];
    body.extend([0x5a; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0, 0, short(server_name.len())]);
    body.extend(server_name);
    let mut hello = vec![0x16, 3, 1, 0, short(body.len() + 4), 1, 0, 0, short(body.len())];
    hello.extend(body);
    hello
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
        let hello = client_hello("s1.test");
        assert_eq!(usize::from(hello[4]) + 5, hello.len());
        assert_eq!(usize::from(hello[8]) + 9, hello.len());
        assert!(hello.windows(7).any(|bytes| bytes == b"s1.test"));
    }

    #[test]
    fn hosts_differ_by_form_and_number() {
        let mut hosts: Vec<String> =
            Form::ALL.iter().flat_map(|form| (0..20).map(|n| form.host(n))).collect();
        hosts.sort();
        hosts.dedup();
        assert_eq!(hosts.len(), 100);
    }
}
