//! Peers that are no agents, or bad ones.

use super::*;

async fn tls(bed: &Bed, server: &Server) -> tokio_rustls::client::TlsStream<TcpStream> {
    let config = client_config(bed.material.bundle().as_bytes()).unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(names()[0].clone()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// Reads to the end of a connection. Time passes by itself where nothing else happens.
async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    pause();
    // However it ends.
    drop(stream.read_to_end(&mut Vec::new()).await);
    resume();
}

#[tokio::test]
async fn garbage_ends_its_connection_and_is_counted() {
    let bed = Bed::new();
    let server = bed.server().await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0xff; 4096], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        // No more is to come.
        stream.shutdown().await.unwrap();
        drop(stream.read_to_end(&mut Vec::new()).await);
    }
    server.counted(Reason::HandshakeFailed, 3).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0xff; 4096]] {
        let mut stream = tls(&bed, &server).await;
        stream.write_all(garbage).await.unwrap();
        drop(timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("it is hung up on"));
    }
    server.counted(Reason::NoSession, 2).await;
    connect(&bed.agent("n1", server.address)).await.answers().await;
}

#[tokio::test]
async fn connections_that_do_nothing_end() {
    let bed = Bed::new();
    let server = bed.server().await;
    let mut no_tls = TcpStream::connect(server.address).await.unwrap();
    // A part of a handshake.
    no_tls.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    ends(&mut no_tls).await;
    server.counted(Reason::HandshakeSlow, 1).await;

    let mut no_http = tls(&bed, &server).await;
    ends(&mut no_http).await;
    server.counted(Reason::NoSession, 1).await;

    // The preface and an empty SETTINGS frame, and then nothing: not even pings are answered.
    let mut no_stream = tls(&bed, &server).await;
    no_stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    ends(&mut no_stream).await;
    server.counted(Reason::NoSession, 2).await;
}

#[tokio::test]
async fn a_connection_that_keeps_sending_without_a_stream_ends() {
    let bed = Bed::new();
    let server = bed.server().await;
    let mut stream = tls(&bed, &server).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // A ping a second, and an answer to each of the server's.
    let until = tokio::time::Instant::now() + 3 * limits::WITHOUT_SESSION;
    let mut hung_up = false;
    let mut heard = Vec::new();
    while tokio::time::Instant::now() < until && !hung_up {
        hung_up = stream.write_all(b"\0\0\x08\x06\0\0\0\0\0abcdefgh").await.is_err();
        hung_up |= matches!(stream.read_buf(&mut heard).await, Ok(0) | Err(_));
        while let [a, b, c, kind, flags, ..] = heard[..] {
            let end = 9 + usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
            if heard.len() < end {
                break;
            }
            let frame: Vec<u8> = heard.drain(..end).collect();
            if (kind, flags) == (6, 0) {
                let answer = [&[0, 0, 8, 6, 1], &frame[5..]].concat();
                hung_up |= stream.write_all(&answer).await.is_err();
            }
        }
        for _ in 0..10 {
            hurry().await;
        }
    }
    assert!(hung_up);
    server.counted(Reason::NoSession, 1).await;
}

#[tokio::test]
async fn bad_messages_end_their_stream_and_are_counted() {
    let bed = Bed::new();
    let server = bed.server().await;
    let many = Batch { sources: vec![proto::Source::default(); MAX_SOURCES + 1], ..batch(1) };
    let too_large = Batch { epoch: vec![0; MAX_MESSAGE_BYTES], ..batch(1) };
    let cases = [
        (Some(from_agent::Message::Batch(batch(0))), Code::InvalidArgument, Reason::MessageMalformed, 1),
        (Some(from_agent::Message::Batch(many)), Code::InvalidArgument, Reason::MessageMalformed, 2),
        (None, Code::InvalidArgument, Reason::MessageMalformed, 3),
        (Some(from_agent::Message::Batch(too_large)), Code::OutOfRange, Reason::MessageTooLarge, 1),
    ];
    for (message, code, reason, times) in cases {
        let mut stream = connect(&bed.agent("n1", server.address)).await;
        stream.out.send(FromAgent { message }).await.unwrap();
        assert_eq!(stream.end().await.code(), code, "{}", reason.label());
        assert_eq!(server.counts.get(reason), times, "{}", reason.label());
    }
    // This one is found out before it is decoded: what is said of it is what the check of its bytes says.
    let source = proto::Source { addresses: vec![vec![]; 100_000], ..proto::Source::default() };
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    stream.say(from_agent::Message::Batch(Batch { sources: vec![source], ..batch(1) })).await;
    let status = stream.end().await;
    assert!(status.message().contains("addresses of pods"), "{status:?}");
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    for sequence in [2, 1] {
        stream.batch(sequence).await;
    }
    assert_eq!(stream.end().await.code(), Code::InvalidArgument);
    assert_eq!(server.counts.get(Reason::BatchOutOfOrder), 1);
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    for sequence in 1..=5 {
        stream.batch(sequence).await;
    }
    assert_eq!(stream.end().await.code(), Code::ResourceExhausted);
    assert_eq!(server.counts.get(Reason::TooManyUnacknowledged), 1);
}

/// A request by hand, since tonic's client sends no half messages.
async fn by_hand(
    bed: &Bed,
    server: &Server,
    headers: &[(&str, &str)],
) -> (tonic::transport::Channel, http::Request<tonic::body::Body>, mpsc::Sender<Vec<u8>>) {
    use http_body::Frame;
    use tokio_stream::wrappers::ReceiverStream;

    struct Frames(ReceiverStream<Vec<u8>>);
    impl http_body::Body for Frames {
        type Data = prost::bytes::Bytes;
        type Error = tonic::Status;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            use tokio_stream::Stream as _;
            std::pin::Pin::new(&mut self.0)
                .poll_next(cx)
                .map(|next| next.map(|data| Ok(Frame::data(data.into()))))
        }
    }
    let stream = tls(bed, server).await;
    let channel = tonic::transport::Endpoint::from_static("http://a")
        .http2_keep_alive_interval(limits::PING)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 14)
        .connect_with_connector(super::super::connect::Once(Some(stream)))
        .await
        .unwrap();
    let (frames, body) = mpsc::channel(4);
    let mut request = http::Request::builder()
        .method("POST")
        .uri("http://a/sidescope.v1.Reports/Report")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = tonic::body::Body::new(Frames(ReceiverStream::new(body)));
    (channel, request.body(body).unwrap(), frames)
}

async fn status(
    mut channel: tonic::transport::Channel,
    request: http::Request<tonic::body::Body>,
) -> Option<String> {
    use tower_service::Service as _;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let response = channel.call(request).await.unwrap();
    if let Some(status) = response.headers().get("grpc-status") {
        return Some(status.to_str().unwrap().to_owned());
    }
    let mut body = std::pin::pin!(response.into_body());
    while let Some(frame) = std::future::poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx)).await {
        if let Ok(trailers) = frame.unwrap().into_trailers() {
            return trailers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
        }
    }
    None
}

#[tokio::test]
async fn a_message_that_does_not_end_ends_its_stream() {
    let bed = Bed::new();
    let server = bed.server().await;
    let headers = [("authorization", "Bearer agent-of-n1")];
    let (channel, request, frames) = by_hand(&bed, &server, &headers).await;
    // One of 4 MiB announced, one byte sent.
    frames.send(vec![0, 0, 0x40, 0, 0, 1]).await.unwrap();
    let status = tokio::spawn(status(channel, request));
    // Its stream begins, and then time passes.
    while server.counts.get(Reason::MessageSlow) == 0 {
        hurry().await;
    }
    assert_eq!(status.await.unwrap().as_deref(), Some("4"));
    assert_eq!(server.counts.get(Reason::MessageSlow), 1);
    drop(frames);
}

#[tokio::test]
async fn what_comes_without_a_token_of_an_agent_is_refused_before_anything_is_read() {
    let bed = Bed::new();
    let server = bed.server().await;
    let large = "a".repeat(usize::try_from(limits::HEADER_BYTES).unwrap());
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Headers<'_>, Option<&str>); 4] = [
        (&[], Some("16")),
        (&[("authorization", "Basic abc")], Some("16")),
        (&[("authorization", "Bearer somebody")], Some("16")),
        // Refused by HTTP/2 already: 431, without a gRPC status.
        (&[("authorization", &large)], None),
    ];
    for (headers, expected) in cases {
        let (channel, request, frames) = by_hand(&bed, &server, headers).await;
        frames.send(vec![0, 0, 0x40, 0, 0, 1]).await.unwrap();
        let status = timeout(SOON, status(channel, request)).await.unwrap();
        assert_eq!(status.as_deref(), expected);
    }
    assert_eq!(server.counts.get(Reason::TokenMissing), 2);
    assert_eq!(server.counts.get(Reason::TokenInvalid), 1);
    server.counted(Reason::NoSession, 4).await;
}

#[tokio::test]
async fn who_does_not_read_its_answers_is_given_up() {
    use prost::Message as _;
    use tower_service::Service as _;

    let bed = Bed::new();
    let server = bed.server().await;
    let headers = [("authorization", "Bearer agent-of-n1")];
    let (mut channel, request, frames) = by_hand(&bed, &server, &headers).await;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let unread = channel.call(request).await.unwrap();
    let ask = FromAgent { message: Some(from_agent::Message::Ask(Ask { asked_ns: 1 })) }.encode_to_vec();
    let asks = [&[0, 0, 0, 0, u8::try_from(ask.len()).unwrap()], &ask[..]].concat().repeat(1_000);
    let given_up = async {
        while server.counts.get(Reason::SlowReader) == 0 {
            // Questions for as long as they are taken.
            drop(frames.try_send(asks.clone()));
            hurry().await;
        }
    };
    timeout(Duration::from_secs(600), given_up).await.expect("it is given up");
    drop(unread);
}
