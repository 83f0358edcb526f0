// enet is an echo server on ENet, and what loads it.
//
//   enet serve
//   enet load PORT SERVER_PID CLIENTS BYTES WARM_UP_MS WINDOW_MS
//
// Both send unreliable packets. They talk to the harness in JSON lines and end when
// standard input does.
#define _GNU_SOURCE
#include <enet/enet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PEERS_MAX = 1024, LOST_AFTER_MS = 200, WAIT_MS = 5 };

static void die(const char *what) {
	fprintf(stderr, "enet: %s\n", what);
	exit(1);
}

static void *watch_input(void *unused) {
	char c;
	while (read(0, &c, 1) > 0) {}
	_exit(0);
	return unused;
}

static long long nanos(clockid_t clock) {
	struct timespec t;
	if (clock_gettime(clock, &t) < 0) die("clock_gettime");
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// keep_all stops ENet from dropping unreliable packets when round trips vary.
static void keep_all(ENetPeer *p) {
	enet_peer_throttle_configure(p, ENET_PEER_PACKET_THROTTLE_INTERVAL, ENET_PEER_PACKET_THROTTLE_SCALE, 0);
}

static void serve(void) {
	ENetAddress a = {0};
	enet_address_set_host_ip(&a, "127.0.0.1");
	ENetHost *h = enet_host_create(&a, PEERS_MAX, 1, 0, 0);
	if (!h) die("create server");
	ENetAddress bound;
	if (enet_socket_get_address(h->socket, &bound) < 0) die("get address");
	printf("{\"addr\":\"127.0.0.1:%d\"}\n", bound.port);
	fflush(stdout);
	pthread_t watcher;
	if (pthread_create(&watcher, NULL, watch_input, NULL) != 0) die("pthread_create");
	for (;;) {
		ENetEvent e;
		for (int got = enet_host_service(h, &e, 100); got > 0; got = enet_host_check_events(h, &e)) {
			if (e.type == ENET_EVENT_TYPE_CONNECT) keep_all(e.peer);
			if (e.type != ENET_EVENT_TYPE_RECEIVE) continue;
			ENetPacket *p = enet_packet_create(e.packet->data, e.packet->dataLength, 0);
			if (enet_peer_send(e.peer, 0, p) < 0) enet_packet_destroy(p);
			enet_packet_destroy(e.packet);
		}
	}
}

static ENetHost *host;
static char *message;
static size_t message_bytes;
static int connected;
static long long answers;
static long long asked[PEERS_MAX]; // nanoseconds

static void ask(ENetPeer *p) {
	ENetPacket *k = enet_packet_create(message, message_bytes, 0);
	if (enet_peer_send(p, 0, k) < 0) die("send");
	asked[p - host->peers] = nanos(CLOCK_MONOTONIC);
}

static void turn(void) {
	ENetEvent e;
	for (int got = enet_host_service(host, &e, WAIT_MS); got > 0; got = enet_host_check_events(host, &e)) {
		switch (e.type) {
		case ENET_EVENT_TYPE_CONNECT:
			connected++;
			keep_all(e.peer);
			ask(e.peer);
			break;
		case ENET_EVENT_TYPE_RECEIVE:
			answers++;
			enet_packet_destroy(e.packet);
			ask(e.peer);
			break;
		case ENET_EVENT_TYPE_DISCONNECT:
			die("disconnected");
		default:
			break;
		}
	}
}

// ask_again has peers ask whose answer got lost.
static void ask_again(long long now) {
	for (size_t i = 0; i < host->peerCount; i++) {
		ENetPeer *p = &host->peers[i];
		if (p->state == ENET_PEER_STATE_CONNECTED && now - asked[i] > LOST_AFTER_MS * 1000000LL) ask(p);
	}
}

static void run(long long ms) {
	long long now = nanos(CLOCK_MONOTONIC), end = now + ms * 1000000, look = 0;
	for (; now < end; now = nanos(CLOCK_MONOTONIC)) {
		turn();
		if (now < look) continue;
		ask_again(now);
		look = now + LOST_AFTER_MS * 1000000LL;
	}
}

static void load(char **argv) {
	int port = atoi(argv[0]), pid = atoi(argv[1]), clients = atoi(argv[2]);
	message_bytes = atoi(argv[3]);
	message = calloc(1, message_bytes);
	if (clients > PEERS_MAX) die("too many clients");
	host = enet_host_create(NULL, clients, 1, 0, 0);
	if (!host || !message) die("create client");
	ENetAddress a = {.port = port};
	enet_address_set_host_ip(&a, "127.0.0.1");
	for (int i = 0; i < clients; i++) {
		if (!enet_host_connect(host, &a, 1, 0)) die("connect");
	}
	for (long long end = nanos(CLOCK_MONOTONIC) + 10000000000LL; connected < clients; turn()) {
		if (nanos(CLOCK_MONOTONIC) > end) die("not all clients could connect");
	}
	run(atoi(argv[4]));
	printf("\"warm\"\n");
	fflush(stdout);
	char word[64];
	if (!fgets(word, sizeof word, stdin)) return;
	clockid_t cpu;
	if (clock_getcpuclockid(pid, &cpu) != 0) die("no CPU clock of the server");
	answers = 0;
	long long wall = nanos(CLOCK_MONOTONIC), used = nanos(cpu);
	run(atoi(argv[5]));
	used = nanos(cpu) - used;
	wall = nanos(CLOCK_MONOTONIC) - wall;
	printf("{\"Done\":%lld,\"CPU\":%lld,\"Wall\":%lld}\n", answers, used, wall);
	fflush(stdout);
	while (fgets(word, sizeof word, stdin)) {}
}

int main(int argc, char **argv) {
	if (enet_initialize() != 0) die("initialize");
	if (argc == 2 && strcmp(argv[1], "serve") == 0) {
		serve();
	} else if (argc == 8 && strcmp(argv[1], "load") == 0) {
		load(argv + 2);
	} else {
		die("want serve, or load PORT SERVER_PID CLIENTS BYTES WARM_UP_MS WINDOW_MS");
	}
	return 0;
}
