//! As much of MongoDB as ratings needs: OP_MSG with `hello` and `find`, and the BSON for that.
//!
//! Real framing matters here: to the watcher it is a TCP protocol that is not HTTP, and it must stay one to a proxy as well.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::listen;

/// The opcode of all modern messages.
const OP_MSG: i32 = 2013;
/// Length, request id, id that is answered, opcode; then OP_MSG's flags and the kind of its one section.
const HEADER: usize = 16;
const SECTION: usize = 5;
/// Longer than any message here; a peer that announces more speaks something else.
const LONGEST: usize = 64 * 1024;

/// A value of a document.
#[derive(Clone, Debug, PartialEq)]
enum Bson {
    Int(i32),
    Long(i64),
    Double(f64),
    Bool(bool),
    Text(String),
    Document(Document),
    Array(Vec<Bson>),
}

/// Fields in their order, which MongoDB gives a meaning: a command's name comes first.
type Document = Vec<(String, Bson)>;

/// Asks a MongoDB for the two ratings, on a connection of its own as Bookinfo does.
pub(crate) async fn ratings(server: &[SocketAddr]) -> Result<Vec<i32>> {
    let mut stream = TcpStream::connect(server)
        .await
        .with_context(|| format!("cannot connect to MongoDB at {server:?}"))?;
    ask(&mut stream, 1, vec![field("hello", Bson::Int(1)), field("$db", text("admin"))]).await?;
    let find = vec![
        field("find", text("ratings")),
        field("filter", Bson::Document(vec![])),
        field("$db", text("test")),
    ];
    let mut reply = ask(&mut stream, 2, find).await?;
    let Some(Bson::Document(mut cursor)) = take(&mut reply, "cursor") else { bail!("MongoDB: no cursor") };
    let Some(Bson::Array(batch)) = take(&mut cursor, "firstBatch") else { bail!("MongoDB: no batch") };
    let rating = |row| match row {
        Bson::Document(mut row) => match take(&mut row, "rating") {
            Some(Bson::Int(stars)) => Ok(stars),
            other => Err(anyhow!("MongoDB: a rating of {other:?}")),
        },
        other => Err(anyhow!("MongoDB: a row of {other:?}")),
    };
    batch.into_iter().map(rating).collect()
}

/// Serves the two ratings until the process ends.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let listener = listen(port).await?;
    loop {
        let (mut stream, peer) = listener.accept().await.context("cannot accept")?;
        // Ends with its connection, and all of them with the process, which the bed kills.
        tokio::spawn(async move {
            if let Err(error) = converse(&mut stream).await {
                eprintln!("connection of {peer}: {error:#}");
            }
        });
    }
}

async fn converse(stream: &mut TcpStream) -> Result<()> {
    while let Some((id, command)) = read(stream).await? {
        let reply = reply(command.first().map_or("", |(name, _)| name));
        stream.write_all(&message(id, id, &reply)).await?;
    }
    Ok(())
}

fn reply(command: &str) -> Document {
    match command {
        "hello" => vec![
            field("isWritablePrimary", Bson::Bool(true)),
            field("minWireVersion", Bson::Int(0)),
            field("maxWireVersion", Bson::Int(17)),
            field("ok", Bson::Double(1.0)),
        ],
        "find" => {
            let rows = [5, 4].map(|stars| Bson::Document(vec![field("rating", Bson::Int(stars))]));
            let cursor = vec![
                field("firstBatch", Bson::Array(rows.to_vec())),
                field("id", Bson::Long(0)),
                field("ns", text("test.ratings")),
            ];
            vec![field("cursor", Bson::Document(cursor)), field("ok", Bson::Double(1.0))]
        }
        other => vec![
            field("ok", Bson::Double(0.0)),
            field("code", Bson::Int(59)),
            field("errmsg", text(&format!("no such command: '{other}'"))),
        ],
    }
}

async fn ask(stream: &mut TcpStream, id: i32, command: Document) -> Result<Document> {
    stream.write_all(&message(id, 0, &command)).await?;
    let (_, mut reply) = read(stream).await?.ok_or_else(|| anyhow!("MongoDB has closed the connection"))?;
    match take(&mut reply, "ok") {
        Some(Bson::Double(1.0)) => Ok(reply),
        other => bail!("MongoDB: ok is {other:?}"),
    }
}

fn message(id: i32, answers: i32, document: &Document) -> Vec<u8> {
    let mut body = Vec::new();
    write_document(&mut body, document);
    let mut bytes = Vec::new();
    for number in [length(HEADER + SECTION + body.len()), id, answers, OP_MSG, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(0);
    bytes.extend(body);
    bytes
}

/// The next message: its id and document. Nothing at the end of the connection.
async fn read(stream: &mut TcpStream) -> Result<Option<(i32, Document)>> {
    let mut header = [0; HEADER];
    match stream.read_exact(&mut header).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let mut fields = Reader(&header);
    let (total, id, _, opcode) = (fields.int()?, fields.int()?, fields.int()?, fields.int()?);
    let total = usize::try_from(total).unwrap_or(0);
    ensure!(opcode == OP_MSG, "opcode {opcode} instead of OP_MSG");
    ensure!((HEADER + SECTION..LONGEST).contains(&total), "a message of {total} bytes");
    let mut rest = vec![0; total - HEADER];
    stream.read_exact(&mut rest).await?;
    let mut rest = Reader(&rest);
    rest.int()?;
    ensure!(rest.byte()? == 0, "a section that is no document");
    Ok(Some((id, rest.document()?)))
}

fn field(name: &str, value: Bson) -> (String, Bson) {
    (name.to_owned(), value)
}

fn text(value: &str) -> Bson {
    Bson::Text(value.to_owned())
}

fn take(document: &mut Document, name: &str) -> Option<Bson> {
    let index = document.iter().position(|(known, _)| known == name)?;
    Some(document.swap_remove(index).1)
}

fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("documents here are of a few hundred bytes")
}

fn write_document(out: &mut Vec<u8>, document: &[(String, Bson)]) {
    let start = out.len();
    out.extend([0; 4]);
    for (name, value) in document {
        let kind = match value {
            Bson::Double(_) => 1,
            Bson::Text(_) => 2,
            Bson::Document(_) => 3,
            Bson::Array(_) => 4,
            Bson::Bool(_) => 8,
            Bson::Int(_) => 16,
            Bson::Long(_) => 18,
        };
        out.push(kind);
        out.extend(name.as_bytes());
        out.push(0);
        match value {
            Bson::Int(number) => out.extend(number.to_le_bytes()),
            Bson::Long(number) => out.extend(number.to_le_bytes()),
            Bson::Double(number) => out.extend(number.to_le_bytes()),
            Bson::Bool(yes) => out.push(u8::from(*yes)),
            Bson::Text(text) => {
                out.extend(length(text.len() + 1).to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Bson::Document(inner) => write_document(out, inner),
            Bson::Array(items) => {
                let inner: Document =
                    items.iter().enumerate().map(|(index, item)| (index.to_string(), item.clone())).collect();
                write_document(out, &inner);
            }
        }
    }
    out.push(0);
    let total = length(out.len() - start).to_le_bytes();
    out[start..start + 4].copy_from_slice(&total);
}

/// The bytes that have not been read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (front, rest) =
            self.0.split_at_checked(count).ok_or_else(|| anyhow!("the message is cut off"))?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into()?)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn int(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    fn text_to_zero(&mut self) -> Result<String> {
        let end =
            self.0.iter().position(|byte| *byte == 0).ok_or_else(|| anyhow!("a text without an end"))?;
        let text = std::str::from_utf8(self.bytes(end)?)?.to_owned();
        self.byte()?;
        Ok(text)
    }

    fn document(&mut self) -> Result<Document> {
        let total = usize::try_from(self.int()?)?;
        ensure!(total > 4, "a document of {total} bytes");
        let mut inner = Reader(self.bytes(total - 4)?);
        let mut fields = Vec::new();
        loop {
            let kind = inner.byte()?;
            if kind == 0 {
                return Ok(fields);
            }
            let name = inner.text_to_zero()?;
            let value = match kind {
                1 => Bson::Double(f64::from_le_bytes(inner.array()?)),
                2 => {
                    inner.int()?;
                    Bson::Text(inner.text_to_zero()?)
                }
                3 => Bson::Document(inner.document()?),
                4 => Bson::Array(inner.document()?.into_iter().map(|(_, item)| item).collect()),
                8 => Bson::Bool(inner.byte()? != 0),
                16 => Bson::Int(inner.int()?),
                18 => Bson::Long(i64::from_le_bytes(inner.array()?)),
                other => bail!("`{name}` has the type {other}, which is not spoken here"),
            };
            fields.push((name, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_written_as_the_specification_shows_it() {
        let mut bytes = Vec::new();
        write_document(&mut bytes, &[field("hello", text("world"))]);
        assert_eq!(bytes, b"\x16\0\0\0\x02hello\0\x06\0\0\0world\0\0");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for command in ["hello", "find", "drop"] {
            let document = reply(command);
            let mut bytes = Vec::new();
            write_document(&mut bytes, &document);
            assert_eq!(Reader(&bytes).document().unwrap(), document);
            for cut in 0..bytes.len() {
                assert!(Reader(&bytes[..cut]).document().is_err(), "{command} cut at {cut}");
            }
        }
    }
}
