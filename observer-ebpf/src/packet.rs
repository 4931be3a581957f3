//! Where the TCP payload of an outgoing packet lies.

use aya_ebpf::programs::SkBuffContext;

const ETH_P_IP: u32 = 0x0800;
const ETH_P_IPV6: u32 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
const IPV6_HEADER: u32 = 40;

/// A TCP segment: where its payload lies in the packet and in the stream.
pub struct Segment {
    /// Sequence number of the first payload byte.
    pub seq: u32,
    /// Offset of the payload from the IP header.
    pub offset: u32,
    /// Length of the payload.
    pub len: u32,
}

/// The segment in an IP packet. `None`: not TCP, or a header that does not fit.
#[inline(always)]
pub fn segment(ctx: &SkBuffContext) -> Option<Segment> {
    let tcp = match u32::from(u16::from_be(ctx.skb.protocol() as u16)) {
        ETH_P_IP => {
            let first: u8 = ctx.load(0).ok()?;
            let protocol: u8 = ctx.load(9).ok()?;
            if protocol != IPPROTO_TCP {
                return None;
            }
            u32::from(first & 0xf) * 4
        }
        // The kernel sends TCP with extension headers only where the program set such options itself; those packets are passed
        // over.
        ETH_P_IPV6 => {
            let next: u8 = ctx.load(6).ok()?;
            if next != IPPROTO_TCP {
                return None;
            }
            IPV6_HEADER
        }
        _ => return None,
    };
    let seq: u32 = ctx.load(tcp as usize + 4).ok()?;
    let data_offset: u8 = ctx.load(tcp as usize + 12).ok()?;
    let offset = tcp + u32::from(data_offset >> 4) * 4;
    let len = ctx.len().checked_sub(offset)?;
    Some(Segment { seq: u32::from_be(seq), offset, len })
}
