use super::*;

fn header(user: &User) -> Option<String> {
    let authorization = Authorization::of(user).unwrap();
    let request = authorization.apply(Request::new(()));
    request.headers().get(AUTHORIZATION).map(|value| {
        assert!(value.is_sensitive(), "it is shown in logs");
        value.to_str().unwrap().to_owned()
    })
}

#[test]
fn basic_authentication_comes_before_a_token_and_a_token_before_its_file() {
    let mut user = User { token_file: Some("/nowhere".into()), ..User::default() };
    assert!(
        Authorization::of(&user).unwrap_err().to_string().contains("tokenFile /nowhere"),
        "the file is named"
    );
    user.token = Some("secret".into());
    assert_eq!(header(&user).as_deref(), Some("Bearer secret"));
    user.username = Some("Aladdin".into());
    assert_eq!(header(&user).as_deref(), Some("Bearer secret"), "a name alone is nothing");
    user.password = Some("open sesame".into());
    assert_eq!(header(&user).as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), "RFC 7617");
    assert_eq!(header(&User::default()), None, "a client certificate needs no header");
}

#[test]
fn a_token_that_cannot_stand_in_a_header_is_an_error() {
    let user = User { token: Some("two\nlines".into()), ..User::default() };
    let error = Authorization::of(&user).unwrap_err().to_string();
    assert!(error.contains("token") && !error.contains("two"), "{error}");
}

#[test]
fn a_token_file_is_read_again_as_it_rotates_and_may_go_away() {
    let path = std::env::temp_dir().join(format!("pinnace-token-{}", std::process::id()));
    let start = Instant::now();
    fs::write(&path, "first\n").unwrap();
    let file = TokenFile::open(path.clone(), start).unwrap();
    fs::write(&path, "second\n").unwrap();
    let second = Duration::from_secs(1);
    assert_eq!(file.header(start + TOKEN_MAX_AGE - second), "Bearer first");
    assert_eq!(file.header(start + TOKEN_MAX_AGE), "Bearer second");
    fs::remove_file(&path).unwrap();
    assert_eq!(file.header(start + 2 * TOKEN_MAX_AGE), "Bearer second");
    fs::write(&path, "third").unwrap();
    assert_eq!(file.header(start + 3 * TOKEN_MAX_AGE - second), "Bearer second");
    assert_eq!(file.header(start + 3 * TOKEN_MAX_AGE), "Bearer third");
    fs::remove_file(&path).unwrap();
}
