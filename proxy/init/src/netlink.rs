//! Netlink messages of nf_tables, as far as the rules need them: an encoder for requests and a decoder for errors.
//!
//! Numbers are those of the kernel's `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
//! `linux/netfilter/nf_tables.h`, which are kernel ABI. Netlink headers are in the host's byte order, nf_tables'
//! attributes in the network's.

use crate::rules::{Action, Chain, Family, Hook, Match, Rule, RuleSet, Table};

/// A transaction: the bytes to send, and what each message in it is for.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// Message `n` has sequence number `n`: what it does, for error messages.
    pub(crate) steps: Vec<String>,
    /// The message whose acknowledgement means that the transaction was committed.
    pub(crate) last: u32,
}

/// The kernel's answer about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The message's sequence number.
    pub(crate) sequence: u32,
    /// 0, or the error's number (positive, as in `errno`).
    pub(crate) errno: i32,
}

const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM_NFTABLES: u16 = 10;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;

const NESTED: u16 = 0x8000;
const HEADER_BYTES: usize = 16;

/// Registers of nf_tables' small machine: the verdict, and the first one for data.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// `NF_IP_PRI_NAT_DST`: where destination NAT belongs, and what `nft` calls `dstnat`.
const PRIORITY_DSTNAT: i32 = -100;

impl Batch {
    /// The transaction that replaces Heddle's tables by these.
    pub(crate) fn replacing(rules: &RuleSet) -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            steps: Vec::new(),
            last: 0,
        };
        batch.edge(BATCH_BEGIN, "begin the transaction");
        for table in &rules.tables {
            let family = table.family;
            let name = |message: &mut Message| message.text(1, Table::NAME);
            // Deleting what is not there is an error, creating what is there is not: so create, delete, create.
            batch.push(
                NEW_TABLE,
                CREATE,
                family,
                format!("create table {family} {}", Table::NAME),
                name,
            );
            batch.push(
                DELETE_TABLE,
                0,
                family,
                format!("empty table {family} {}", Table::NAME),
                name,
            );
            batch.push(
                NEW_TABLE,
                CREATE,
                family,
                format!("create table {family} {}", Table::NAME),
                name,
            );
            for chain in &table.chains {
                let step = format!("create chain {family} {} {}", Table::NAME, chain.name);
                batch.push(NEW_CHAIN, CREATE, family, step, |message| {
                    put_chain(message, chain)
                });
                for rule in &chain.rules {
                    let step = format!(
                        "add to chain {family} {} {} the rule `{rule}`",
                        Table::NAME,
                        chain.name
                    );
                    batch.push(NEW_RULE, CREATE | APPEND, family, step, |message| {
                        put_rule(message, chain, rule)
                    });
                }
            }
        }
        batch.acknowledge_last();
        batch.edge(BATCH_END, "commit the transaction");
        batch
    }

    fn edge(&mut self, kind: u16, step: &str) {
        let message = Message::new(kind, REQUEST, self.steps.len(), 0, SUBSYSTEM_NFTABLES);
        self.bytes.append(&mut message.finish());
        self.steps.push(step.to_owned());
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, step: String, fill: impl FnOnce(&mut Message)) {
        let mut message = Message::about(kind, flags, self.steps.len(), family);
        fill(&mut message);
        self.last = u32::try_from(self.steps.len()).expect("the rules are bounded far below 2^32");
        self.bytes.append(&mut message.finish());
        self.steps.push(step);
    }

    /// Kernels before 6.10 do not acknowledge the end of a batch, but all acknowledge a message in it, and do so
    /// after the transaction was committed. Errors are reported whether or not they were asked for.
    fn acknowledge_last(&mut self) {
        let mut offset = 0;
        while let Some(header) = self.bytes.get_mut(offset..offset + HEADER_BYTES) {
            if header[8..12] == self.last.to_ne_bytes() {
                let flags = u16::from_ne_bytes([header[6], header[7]]) | ACK;
                header[6..8].copy_from_slice(&flags.to_ne_bytes());
            }
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            offset += length as usize;
        }
    }
}

/// Asks for one chain; the answer has sequence number 0 and is an error when there is none.
pub(crate) fn get_chain(family: Family, chain: &Chain) -> Vec<u8> {
    let mut message = Message::about(GET_CHAIN, ACK, 0, family);
    message.text(1, Table::NAME);
    message.text(3, chain.name);
    message.finish()
}

/// Reads the answers in one datagram; what is no answer is passed over.
pub(crate) fn answers(mut datagram: &[u8]) -> Vec<Answer> {
    let word = |bytes: &[u8], at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let mut found = Vec::new();
    while let Some(length) = word(datagram, 0).map(|bytes| u32::from_ne_bytes(bytes) as usize) {
        let Some(message) = datagram
            .get(..length)
            .filter(|message| message.len() >= HEADER_BYTES)
        else {
            break;
        };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        // The error's number, negative, and then the header of the message it is about.
        if let (NLMSG_ERROR, Some(error), Some(sequence)) = (kind, word(message, 16), word(message, 28)) {
            let errno = i32::from_ne_bytes(error).checked_neg().unwrap_or(i32::MAX);
            found.push(Answer {
                sequence: u32::from_ne_bytes(sequence),
                errno,
            });
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn put_chain(message: &mut Message, chain: &Chain) {
    message.text(1, Table::NAME);
    message.text(3, chain.name);
    message.nest(4, |hook| {
        hook.number(
            1,
            match chain.hook {
                Hook::Prerouting => 0,
                Hook::Output => 3,
            },
        );
        hook.bytes(2, &PRIORITY_DSTNAT.to_be_bytes());
    });
    message.number(5, NF_ACCEPT);
    message.text(7, "nat");
}

const NF_ACCEPT: u32 = 1;
const NFT_RETURN: i32 = -5;

fn put_rule(message: &mut Message, chain: &Chain, rule: &Rule) {
    message.text(1, Table::NAME);
    message.text(2, chain.name);
    message.nest(4, |list| {
        rule.matches
            .iter()
            .for_each(|condition| put_match(list, condition));
        put_action(list, rule.action);
    });
    // User data that `nft` shows as a comment: type 0, length with the closing zero, text.
    let length = u8::try_from(rule.comment.len() + 1).expect("comments are short constants");
    let mut comment = vec![0, length];
    comment.extend(rule.comment.bytes());
    comment.push(0);
    message.bytes(7, &comment);
}

fn put_match(list: &mut Message, condition: &Match) {
    match condition {
        Match::Tcp => tcp(list),
        Match::TcpPort(first, last) => {
            tcp(list);
            payload(list, Header::Transport, 2, 2);
            if first == last {
                equals(list, &first.to_be_bytes());
            } else {
                expression(list, "range", |data| {
                    data.number(1, REGISTER);
                    data.number(2, 0);
                    data.nest(3, |from| from.bytes(1, &first.to_be_bytes()));
                    data.nest(4, |to| to.bytes(1, &last.to_be_bytes()));
                });
            }
        }
        Match::User(uid) => {
            meta(list, Meta::SocketUser);
            equals(list, &uid.to_ne_bytes());
        }
        Match::Group(gid) => {
            meta(list, Meta::SocketGroup);
            equals(list, &gid.to_ne_bytes());
        }
        Match::FromLoopback => {
            meta(list, Meta::InputName);
            equals(list, &LOOPBACK);
        }
        Match::ToLoopback => {
            meta(list, Meta::OutputName);
            equals(list, &LOOPBACK);
        }
        Match::Source(ipnet::IpNet::V4(network)) => {
            source(list, 12, &network.addr().octets(), &network.netmask().octets());
        }
        Match::Source(ipnet::IpNet::V6(network)) => {
            source(list, 8, &network.addr().octets(), &network.netmask().octets());
        }
    }
}

fn put_action(list: &mut Message, action: Action) {
    match action {
        Action::Leave => expression(list, "immediate", |data| {
            data.number(1, VERDICT);
            data.nest(2, |value| {
                value.nest(2, |verdict| verdict.bytes(1, &NFT_RETURN.to_be_bytes()))
            });
        }),
        Action::RedirectTo(port) => {
            expression(list, "immediate", |data| {
                data.number(1, REGISTER);
                data.nest(2, |value| value.bytes(1, &port.to_be_bytes()));
            });
            expression(list, "redir", |data| {
                data.number(1, REGISTER);
                // NF_NAT_RANGE_PROTO_SPECIFIED: the port is given, the address is the kernel's to choose.
                data.number(3, 2);
            });
        }
    }
}

/// A device's name fills its field; the zeros are compared, too.
const LOOPBACK: [u8; 16] = *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[derive(Clone, Copy)]
enum Meta {
    InputName = 6,
    OutputName = 7,
    SocketUser = 10,
    SocketGroup = 11,
    Protocol = 16,
}

#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

fn tcp(list: &mut Message) {
    meta(list, Meta::Protocol);
    equals(list, &[6]);
}

fn meta(list: &mut Message, key: Meta) {
    expression(list, "meta", |data| {
        data.number(2, key as u32);
        data.number(1, REGISTER);
    });
}

fn payload(list: &mut Message, header: Header, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.number(1, REGISTER);
        data.number(2, header as u32);
        data.number(3, offset);
        data.number(4, length);
    });
}

fn equals(list: &mut Message, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER);
        data.number(2, 0);
        data.nest(3, |data| data.bytes(1, value));
    });
}

fn source(list: &mut Message, offset: u32, address: &[u8], mask: &[u8]) {
    let length = u32::try_from(address.len()).expect("an address has 4 or 16 bytes");
    payload(list, Header::Network, offset, length);
    expression(list, "bitwise", |data| {
        data.number(1, REGISTER);
        data.number(2, REGISTER);
        data.number(3, length);
        data.nest(4, |value| value.bytes(1, mask));
        data.nest(5, |value| value.bytes(1, &vec![0; address.len()]));
    });
    equals(list, address);
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(1, |item| {
        item.text(1, name);
        item.nest(2, fill);
    });
}

/// One message being written: a header and attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, sequence: usize, family: u8, resource: u16) -> Self {
        let sequence = u32::try_from(sequence).expect("the rules are bounded far below 2^32");
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The kernel fills the sender's port in.
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    /// A request to nf_tables about a table of this family.
    fn about(kind: u16, flags: u16, sequence: usize, family: Family) -> Self {
        let family = match family {
            Family::Ip => 2,
            Family::Ip6 => 10,
        };
        Self::new(
            SUBSYSTEM_NFTABLES << 8 | kind,
            REQUEST | flags,
            sequence,
            family,
            0,
        )
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length =
            u16::try_from(4 + value.len()).expect("attributes are small: names, numbers and addresses");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).expect("a rule has a handful of small expressions");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a message has a handful of small attributes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sequence: u32, errno: i32) -> Vec<u8> {
        let mut message = Message::new(NLMSG_ERROR, 0, 0, 0, 0);
        message.0.truncate(HEADER_BYTES);
        message.0.extend(errno.wrapping_neg().to_ne_bytes());
        message.0.extend([0; 8]);
        message.0.extend(sequence.to_ne_bytes());
        message.0.extend([0; 4]);
        message.finish()
    }

    #[test]
    fn reads_answers_and_survives_nonsense() {
        let mut datagram = error(3, 1);
        datagram.extend(error(9, 0));
        assert_eq!(
            answers(&datagram),
            [
                Answer {
                    sequence: 3,
                    errno: 1
                },
                Answer {
                    sequence: 9,
                    errno: 0
                }
            ]
        );
        for cut in 0..datagram.len() {
            answers(&datagram[..cut]);
        }
        assert_eq!(answers(&[0; 64]), []);
        assert_eq!(answers(&[0xff; 64]), []);
        assert_eq!(
            answers(&error(1, i32::MIN)),
            [Answer {
                sequence: 1,
                errno: i32::MAX
            }]
        );
    }

    #[test]
    fn attributes_are_aligned_and_nested_lengths_add_up() {
        let mut message = Message::new(0, 0, 7, 2, 0);
        message.nest(4, |list| list.text(1, "lo"));
        let bytes = message.finish();
        assert_eq!(bytes.len(), 20 + 4 + 8);
        assert_eq!(bytes[0..4], 32u32.to_ne_bytes());
        assert_eq!(
            bytes[20..24],
            [12u16.to_ne_bytes(), 0x8004u16.to_ne_bytes()].concat()
        );
        assert_eq!(
            bytes[24..32],
            [&7u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"lo\0\0"].concat()
        );
    }
}
