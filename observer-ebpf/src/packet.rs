//! Where the TCP or UDP payload of a packet lies.

use aya_ebpf::programs::SkBuffContext;

use crate::bounded::{is_zero, within_ipv4_header};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPV6_HEADER: u32 = 40;
const UDP_HEADER: u32 = 8;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// The payload of a packet.
#[derive(Clone, Copy)]
pub struct Payload {
    /// [`TCP`] or [`UDP`].
    pub transport: u8,
    /// Sequence number of the first byte (TCP).
    pub seq: u32,
    /// Offset from the IP header.
    pub offset: u32,
    /// Length.
    pub len: u32,
}

impl Payload {
    /// What comes after so many bytes of it; there must be as many.
    #[inline(always)]
    pub fn after(self, bytes: u32) -> Self {
        Self { seq: self.seq.wrapping_add(bytes), offset: self.offset + bytes, len: self.len - bytes, ..self }
    }
}

/// The payload of an IP packet. `None`: neither TCP nor UDP, or a header that does not fit.
#[inline(always)]
pub fn payload(ctx: &SkBuffContext) -> Option<Payload> {
    let (transport, header) = match u16::from_be(ctx.skb.protocol() as u16) {
        ETH_P_IP => {
            let ip: [u8; 10] = ctx.load(0).ok()?;
            (ip[9], u32::from(ip[0] & 0xf) * 4)
        }
        ETH_P_IPV6 => {
            let ip: [u8; 36] = ctx.load(6).ok()?;
            let (first, [next, words]) = (ip[0], [ip[34], ip[35]]);
            // What is larger than 64 KiB at once (BIG TCP) has a hop-by-hop header of eight bytes, whose number is 0. Programs can make the
            // kernel add others to what they send; such packets are passed over.
            let hop_by_hop = is_zero(first.into());
            if u64::from(words) * hop_by_hop != 0 {
                return None;
            }
            let header = within_ipv4_header(u64::from(IPV6_HEADER) + 8 * hop_by_hop);
            (first | (u64::from(next) * hop_by_hop) as u8, header as u32)
        }
        _ => return None,
    };
    let (seq, length) = match transport {
        TCP => {
            let tcp: [u8; 16] = ctx.load(header as usize).ok()?;
            let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            // With fast open a SYN has data, and takes a number of its own before them.
            (seq.wrapping_add(u32::from(tcp[13] >> 1 & 1)), u32::from(tcp[12] >> 4) * 4)
        }
        UDP => (0, UDP_HEADER),
        _ => return None,
    };
    let offset = header + length;
    let len = ctx.len().checked_sub(offset)?;
    Some(Payload { transport, seq, offset, len })
}
