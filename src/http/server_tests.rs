//! A real server on loopback, in front of an engine that answers what a test wants.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Starts a server whose engine answers by `engine`; returns where.
async fn server(engine: impl Fn(Query) + Send + 'static) -> SocketAddr {
    let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (queries, mut asked) = mpsc::channel(4);
    tokio::spawn(serve(listener, queries, Arc::new(Metrics::new())));
    tokio::spawn(async move {
        while let Some(query) = asked.recv().await {
            engine(query);
        }
    });
    address
}

async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn answers(query: Query) {
    match query {
        Query::State(reply) => {
            drop(reply.send(NodeState { node: "n1".into(), ..NodeState::default() }))
        }
        Query::Summary(reply) => drop(reply.send(Summary { serving: 3, ..Summary::default() })),
        Query::Conditions(reply) => drop(reply.send(vec![
            Condition::when("SourceSynced", true, ""),
            Condition::when("RulesApplied", false, "not written yet"),
        ])),
        Query::Health(reply) => drop(reply.send(Err("draining".into()))),
        Query::Service(key, reply) => drop(reply.send(match &*key.name {
            "web" => Some(ServiceHealth { local_endpoints: 2, proxy_healthy: true }),
            "idle" => Some(ServiceHealth { local_endpoints: 0, proxy_healthy: true }),
            _ => None,
        })),
    }
}

#[tokio::test]
async fn every_path_answers_what_it_says() {
    let address = server(answers).await;
    // request, status, what the answer contains
    let cases = [
        ("GET /livez", "200 OK", "ok"),
        ("GET /readyz", "503 ", "[+]SourceSynced ok\n[-]RulesApplied not written yet\n"),
        ("GET /healthz", "503 ", "draining"),
        (
            "GET /services/default/web",
            "200 OK",
            r#"{"localEndpoints":2,"service":{"name":"web","namespace":"default"},"serviceProxyHealthy":true}"#,
        ),
        ("GET /services/default/web", "200 OK", "x-content-type-options: nosniff"),
        ("GET /services/default/idle", "503 ", r#""localEndpoints":0"#),
        ("GET /services/default/none", "404 ", "default/none"),
        ("GET /state", "200 OK", r#""node":"n1""#),
        ("GET /metrics", "200 OK", "# EOF"),
        ("GET /nowhere", "404 ", "/readyz"),
        ("POST /livez", "405 ", "allow: GET, HEAD"),
    ];
    for (request, status, contains) in cases {
        let answer = raw(address, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(contains),
            "{request}: {answer}"
        );
    }
    assert!(fetch(address, "/state").await.unwrap().starts_with(b"{\"node\":\"n1\""));
}

#[tokio::test]
async fn an_engine_that_hangs_is_not_live() {
    let (queries, _kept) = mpsc::channel(1);
    assert_eq!(live(&queries).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn errors_name_the_setting() {
    let taken = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = taken.local_addr().unwrap();
    assert!(bind(address).await.unwrap_err().to_string().contains("PINNACE_LISTEN"));
    drop(taken);
    assert!(fetch(address, "/state").await.unwrap_err().to_string().contains("not running"));
}
