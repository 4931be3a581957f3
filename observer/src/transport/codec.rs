//! protobuf, decoded only after its [`Shape`] was found to be within bounds.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::wire::shape::Shape;

/// Encodes `T`, decodes `U`. Named by the build script for both sides of `Reports`.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Shape + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Checked<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Checked(PhantomData)
    }
}

/// Decodes what was checked.
#[derive(Debug)]
pub struct Checked<U>(PhantomData<U>);

impl<U: Message + Default + Shape> Decoder for Checked<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        U::check(&bytes).map_err(|err| Status::invalid_argument(err.to_string()))?;
        let message = U::decode(bytes)
            .map_err(|err| Status::invalid_argument(format!("message is no protobuf: {err}")))?;
        Ok(Some(message))
    }
}
