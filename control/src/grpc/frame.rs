//! Messages as they go over the wire: encoded once, then shared by everyone they are for.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

/// gRPC's prefix of a message: not compressed, and its length.
const PREFIX: usize = 5;

/// Messages for one client, complete with their prefixes. Clones share the bytes.
pub(super) type Frames = Arc<[Bytes]>;

/// A message with its prefix.
pub(super) fn frame(message: &impl Message) -> Bytes {
    frame_with(message.encoded_len(), |buffer| {
        message
            .encode(buffer)
            .expect("the buffer grows with what is written");
    })
}

/// A message that `write` encodes, with its prefix; `length` is only a guess.
pub(super) fn frame_with(length: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut buffer = BytesMut::with_capacity(PREFIX + length);
    buffer.put_bytes(0, PREFIX);
    write(&mut buffer);
    let length = u32::try_from(buffer.len() - PREFIX).expect("messages are far smaller than 4 GiB");
    buffer[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    buffer.freeze()
}

/// The message in a frame.
#[cfg(test)]
pub(super) fn unframe<T: Message + Default>(frame: &[u8]) -> T {
    let (prefix, message) = frame.split_at(PREFIX);
    let length = u32::try_from(message.len()).expect("a message").to_be_bytes();
    assert_eq!((prefix[0], &prefix[1..]), (0, length.as_slice()));
    T::decode(message).expect("a message of this kind")
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::destination::NoEndpoints;

    use super::*;

    #[test]
    fn a_frame_is_a_flag_a_length_and_the_message() {
        assert_eq!(frame(&NoEndpoints { exists: true }), &[0, 0, 0, 0, 2, 8, 1][..]);
        assert_eq!(
            unframe::<NoEndpoints>(&[0, 0, 0, 0, 2, 8, 1]),
            NoEndpoints { exists: true }
        );
    }
}
