#include "glimpse/io/hub.h"

#include "glimpse/io/digest.h"
#include "glimpse/io/model_card.h"
#include "glimpse/io/web.h"
#include "io/scratch.h"

using namespace glimpse;
using namespace glimpse::test;

namespace {

std::vector<std::string> needed(const std::vector<std::string>& names, const std::string& quantisation = "") {
  HubListing listing{{"org/net", "main", quantisation}, std::string(40, 'a'), {}, {}};
  for (const std::string& name : names) listing.files.push_back({name, 1, ""});
  std::vector<std::string> out;
  for (const HubFile& file : needed_files(listing)) out.push_back(file.name);
  return out;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("hub ids stay within a folder") {
  CHECK(HubId::parse("Qwen/Qwen2.5-VL-3B-Instruct")->revision == "main");
  CHECK(HubId::parse("org/net@refs/pr/1")->revision == "refs/pr/1");
  CHECK(HubId::parse("org/net@v1")->text() == "org/net@v1");
  CHECK(HubId::parse("org/net@main")->text() == "org/net");
  for (const char* text : {"org/net:Q4_K_M@refs/pr/1", "org/net@refs/pr/1:Q4_K_M"}) {
    const auto id = HubId::parse(text);
    CHECK(std::tie(id->repo, id->revision, id->quantisation) ==
          std::make_tuple("org/net", "refs/pr/1", "Q4_K_M"));
    CHECK(id->text() == "org/net:Q4_K_M@refs/pr/1");
  }
  CHECK(HubId::parse("org/net:UD-Q4.1")->revision == "main");
  for (const char* wrong : {"",
                            "net",
                            "org/",
                            "/net",
                            "a/b/c",
                            "../net",
                            "org/..",
                            "org/.",
                            "org/n et",
                            "org/net@",
                            "org/net@..",
                            "org/net:",
                            "org/net:Q4/K",
                            "org/net:a:b",
                            ":Q4",
                            "org/net@v1:",
                            "org:Q4/net",
                            "org/net@a:b@c",
                            "org/net@a/../b",
                            "org/net@a//b",
                            "org/net@/a",
                            "org/net@a/",
                            "org/net@a@b",
                            "org/n\xc3\xa4"})
    CHECK_MESSAGE(!HubId::parse(wrong), wrong);
  CHECK(!HubId::parse("org/" + std::string(200, 'a')));
}

TEST_CASE("of a repository only what is needed is fetched") {
  CHECK(needed({"README.md", "config.json", "model.safetensors", "pytorch_model.bin",
                "pytorch_model.bin.index.json", "x/config.json", "consolidated.safetensors",
                "tokenizer.model", "chat_template.jinja", "merges.txt", "a b.json"}) ==
        Names{"config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt"});
  CHECK(needed({"config.json", "pytorch_model-1.bin", "pytorch_model.bin.index.json", "training_args.bin"}) ==
        Names{"config.json", "pytorch_model-1.bin", "pytorch_model.bin.index.json"});
  CHECK(needed({"README.md", "config.json", "new_modules_gp.pt", "scout.safetensors"}) ==
        Names{"README.md", "config.json", "new_modules_gp.pt", "scout.safetensors"});
  CHECK(needed({"config.json", "new_modules_gp.pt", "new_modules_gp.safetensors"}) ==
        Names{"config.json", "new_modules_gp.safetensors"});
  CHECK(needed({"adapter_config.json", "adapter_model.bin", "optimizer.pt"}) ==
        Names{"adapter_config.json", "adapter_model.bin"});
  CHECK_THROWS_WITH_AS(needed({"config.json", "net.onnx"}), doctest::Contains("no weights"), Error);
}

TEST_CASE("of GGUF files those of one model are fetched, with its vision encoder") {
  const Names files = {"README.md",       "config.json",         "net-F16.gguf",
                       "net-Q4_K_M.gguf", "net-UD-Q4_K_M.gguf",  "net-q8_0.gguf",
                       "mmproj-F32.gguf", "mmproj-net-f16.gguf", "BF16/net-BF16-00002-of-00002.gguf",
                       "net-Q4_K_S.gguf", "imatrix.dat",         "BF16/net-BF16-00001-of-00002.gguf",
                       "net.IQ4_XS.gguf"};
  const std::string eyes = "mmproj-net-f16.gguf";
  const auto of = [&](const std::string& quantisation) { return needed(files, quantisation); };
  CHECK(of("") == Names{"net-Q4_K_M.gguf", eyes});
  CHECK(of("q4_k_m") == Names{"net-Q4_K_M.gguf", eyes});
  CHECK(of("Q8_0") == Names{"net-q8_0.gguf", eyes});
  CHECK(of("F16") == Names{"net-F16.gguf", eyes});
  CHECK(of("IQ4_XS") == Names{eyes, "net.IQ4_XS.gguf"});
  CHECK(of("UD-Q4_K_M") == Names{"net-UD-Q4_K_M.gguf", eyes});
  CHECK(of("BF16") == Names{eyes, "BF16/net-BF16-00002-of-00002.gguf", "BF16/net-BF16-00001-of-00002.gguf"});
  for (const char* none : {"Q4_K", "Q5_K_M", "mmproj", "4_K_M"})
    CHECK_THROWS_WITH_AS(of(none), doctest::Contains("there are: BF16, F16, Q4_K_M, Q4_K_S, "), Error);
  // Without the usual one the first; beside safetensors only when asked for.
  CHECK(needed({"b-Q8_0.gguf", "a-Q2_K.gguf"}) == Names{"a-Q2_K.gguf"});
  CHECK(needed({"config.json", "model.safetensors", "net-Q8_0.gguf"}) ==
        Names{"config.json", "model.safetensors"});
  CHECK(needed({"config.json", "model.safetensors", "net-Q8_0.gguf"}, "Q8_0") == Names{"net-Q8_0.gguf"});
  CHECK_THROWS_WITH_AS(needed({"mmproj-F16.gguf"}), doctest::Contains("no weights"), Error);
  CHECK_THROWS_WITH_AS(needed({"config.json", "model.safetensors"}, "Q8_0"), doctest::Contains("(*.gguf)"),
                       Error);
}

TEST_CASE("files are called by their hashes") {
  // `git hash-object` of an empty file and of "hello\n", `sha256sum` of the latter.
  const auto agrees = [](const std::string& etag, const std::string& content) {
    Digest digest(etag, content.size());
    digest.add("x", 1);
    digest.restart();
    digest.add(content.data(), content.size());
    return digest.agrees();
  };
  CHECK(agrees("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", ""));
  CHECK(agrees("ce013625030ba8dba906f756967f9e9ca394464a", "hello\n"));
  CHECK(agrees("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", "hello\n"));
  CHECK(!agrees("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", "hello"));
  CHECK(!agrees("ce013625030ba8dba906f756967f9e9ca394464a", "hellO\n"));
  CHECK(agrees("some-name", "anything"));
}

TEST_CASE("who is trusted with a token") {
  CHECK(web_origin("https://Hub.example/a") == web_origin("https://hub.example:443/b?c"));
  for (const char* other : {"http://hub.example/a", "https://hub.example:444/a", "https://hub.example.evil/",
                            "https://evil/hub.example", "https://cdn.hub.example/"})
    CHECK_MESSAGE(web_origin(other) != web_origin("https://hub.example/"), other);
  CHECK(web_origin("https://hub.example@evil/") == web_origin("https://evil/"));
  for (const char* none : {"", "ftp://hub.example", "file:///etc/hosts", "hub", "https://"})
    CHECK_MESSAGE(web_origin(none).empty(), none);
}

TEST_CASE("modules and adapters name the model that they are for") {
  const Scratch scratch;
  const auto base = [&](const std::string& file, const std::string& text) {
    std::filesystem::remove_all(scratch / "dir");
    return base_model_of(scratch.write("dir/" + file, text).parent_path());
  };
  CHECK(base("README.md", "---\nbase_model: org/net\n---\n# Card\n") == "org/net");
  CHECK(base("README.md", "---\r\nbase_model:\r\n  - /tmp/net\r\n  - org/net\r\n---\r\n") == "org/net");
  CHECK(base("README.md", "base_model: org/net\n") == "");
  CHECK(base("README.md", "---\nbase_model: org/net\n") == "");
  CHECK(base("README.md", "---\nbase_model: [\n---\n") == "");
  CHECK(base("config.json", R"({"_name_or_path": "org/net"})") == "org/net");
  CHECK(base("config.json", R"({"_name_or_path": "/mnt/models/net"})") == "");
  CHECK(base("config.json", R"({"_name_or_path": 3})") == "");
  CHECK(base("adapter_config.json", R"({"base_model_name_or_path": "org/net"})") == "org/net");
  std::string bomb = "---\na0: &a0 [x]\n";
  for (int i = 0; i < 9; ++i) {
    bomb += concat("a", i + 1, ": &a", i + 1, " [");
    for (int k = 0; k < 10; ++k) bomb += concat(k ? ", " : "", "*a", i);
    bomb += "]\n";
  }
  CHECK(base("README.md", bomb + "---\n") == "");
}

TEST_CASE("a snapshot that is not whole is known") {
  const Scratch scratch;
  scratch.write("dir/model.safetensors.index.json",
                R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})");
  scratch.write("dir/model-1.safetensors", "");
  CHECK(missing_file(scratch / "dir") == "config.json");
  scratch.write("dir/config.json", "{}");
  CHECK(missing_file(scratch / "dir") == "model-2.safetensors");
  scratch.write("dir/model-2.safetensors", "");
  CHECK(missing_file(scratch / "dir") == "");
  std::filesystem::create_symlink("gone", scratch / "dir/tokenizer.json");
  CHECK(missing_file(scratch / "dir") == "tokenizer.json");
  scratch.write("other/config.json", "{}");
  CHECK(missing_file(scratch / "other") == "model.safetensors");
  CHECK(missing_file(scratch.write("gguf/net.gguf", "").parent_path()) == "");
}
