use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[test]
fn a_server_is_blamed_for_what_it_cannot_do_and_for_what_fails_again_and_again() {
    let blamed = |codes: &[u16]| {
        let mut errors = 0;
        codes
            .iter()
            .map(|code| is_server_error(StatusCode::from_u16(*code).unwrap(), &mut errors))
            .collect::<Vec<_>>()
    };
    assert_eq!(blamed(&[200, 502, 503, 504]), [false, true, true, true]);
    assert_eq!(
        blamed(&[401, 403, 404, 409, 410, 422, 429, 500, 501]),
        [false; 9],
        "an answer to the request"
    );
    assert_eq!(blamed(&[500, 500, 500, 500, 500]), [false, false, false, false, true]);
    assert_eq!(blamed(&[500, 500, 500, 500, 200, 500]), [false; 6]);
}

/// Answers every request so, like a load balancer whose servers are all away.
async fn answering(status: &'static str) -> Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    uri.parse().unwrap()
}

#[tokio::test]
async fn a_server_that_answers_503_is_left_for_the_next_one() {
    let path = std::env::temp_dir().join(format!("pinnace-client-{}", std::process::id()));
    let text = "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
        clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {token: t}}]}";
    std::fs::write(&path, text).unwrap();
    let servers = vec![answering("503 Service Unavailable").await, answering("200 OK").await];
    let connection =
        Connection::open(Credentials::Kubeconfig(path.clone()), servers.clone()).await.unwrap();
    std::fs::remove_file(path).unwrap();
    let client = connection.client();
    let ask = || client.request_text(Request::get("/version").body(Vec::new()).unwrap());
    assert!(ask().await.is_err());
    assert_eq!(ask().await.unwrap(), "{}");
    assert_eq!(connection.server(), servers[1].to_string().trim_end_matches('/'));
}

/// Answers each request with its own `Authorization` header.
async fn echoing_authorization() -> Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            let header = request.lines().find_map(|line| line.strip_prefix("authorization: "));
            let header = header.unwrap_or("none");
            let length = header.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{header}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    uri.parse().unwrap()
}

#[tokio::test]
async fn requests_carry_the_token_of_the_file_and_the_new_one_after_its_rotation() {
    let path = |name: &str| {
        std::env::temp_dir().join(format!("pinnace-client-{name}-{}", std::process::id()))
    };
    let (kubeconfig, token) = (path("rotation"), path("rotated-token"));
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}],
        clusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:1'}}}}], users: [{{name: a, user: {{tokenFile: {}}}}}]}}",
        token.display()
    );
    std::fs::write(&kubeconfig, text).unwrap();
    std::fs::write(&token, "first\n").unwrap();
    let servers = vec![echoing_authorization().await];
    let connection =
        Connection::open(Credentials::Kubeconfig(kubeconfig.clone()), servers).await.unwrap();
    let client = connection.client();
    let ask = || client.request_text(Request::get("/version").body(Vec::new()).unwrap());
    assert_eq!(ask().await.unwrap(), "Bearer first");

    std::fs::write(&token, "second\n").unwrap();
    connection.reload().await.unwrap();
    assert_eq!(ask().await.unwrap(), "Bearer second");

    std::fs::remove_file(token).unwrap();
    std::fs::remove_file(kubeconfig).unwrap();
}
