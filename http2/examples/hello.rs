//! A server of one page over cleartext HTTP/2, a thread per connection: the least that drives the
//! engine over a socket, and something for `h2spec` to talk to.
//!
//! ```text
//! cargo run -p http2 --example hello 127.0.0.1:8080
//! h2spec -h 127.0.0.1 -p 8080 --strict
//! ```

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use http2::{Config, Connection, Event, Headers, Role};

fn main() -> io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for socket in listener.incoming() {
        let socket = socket?;
        std::thread::spawn(move || {
            if let Err(e) = serve(socket) {
                eprintln!("{e}");
            }
        });
    }
    Ok(())
}

fn serve(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut engine = Connection::new(Role::Server, Config::default(), Instant::now());
    let mut buffer = [0; 65_536];
    loop {
        engine.flush(Instant::now());
        while engine.take_sent().is_some() {}
        socket.write_all(engine.output())?;
        engine.consume(engine.output().len());
        let n = socket.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        let mut input = &buffer[..n];
        loop {
            match engine.receive(&mut input, Instant::now()) {
                Ok(Some(event)) => answer(&mut engine, event),
                Ok(None) => break,
                Err(e) => {
                    // The GOAWAY is in the output. What is still unread would make the kernel
                    // send RST, which may overtake it: read on for a moment.
                    socket.write_all(engine.output())?;
                    socket.shutdown(std::net::Shutdown::Write)?;
                    while socket.read(&mut buffer)? > 0 {}
                    return Err(io::Error::other(e));
                }
            }
        }
    }
}

fn answer(engine: &mut Connection, event: Event<'_>) {
    let (stream, end_stream) = match event {
        Event::Headers {
            stream,
            headers,
            end_stream,
            ..
        } => {
            http2::stock::recycle(headers);
            (stream, end_stream)
        }
        Event::Data {
            stream,
            bytes,
            end_stream,
            ..
        } => {
            engine.credit(stream, bytes.len());
            (stream, end_stream)
        }
        Event::Trailers { stream, .. } => (stream, true),
        Event::HeadersTooLarge { stream, .. } => {
            let mut head = Headers::new();
            head.push(b":status", b"431");
            return engine.send_headers(stream, &head, true);
        }
        _ => return,
    };
    if end_stream {
        let mut head = Headers::new();
        head.push(b":status", b"200");
        head.push(b"content-type", b"text/plain");
        engine.send_headers(stream, &head, false);
        engine.send_data(stream, b"hello\n", true, Instant::now());
    }
}
