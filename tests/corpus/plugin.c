/* The source of plugin.so, a library with a plugin's manifest and nothing else:
   cc -shared -nostdlib -s -Wl,-z,noseparate-code -Wl,--build-id=none -o plugin.so plugin.c */
__attribute__((section(".dro.manifest"), used)) static const char manifest[] =
    "{\"kind\":\"sampler\",\"name\":\"none\",\"version\":\"1.0.0\",\"contract\":1,\"libtorch\":\"2.13.0\"}\n"
    "{\"kind\":\"attack\",\"name\":\"none\",\"version\":\"1.0.0\",\"contract\":1,\"libtorch\":\"2.13.0\"}\n";
