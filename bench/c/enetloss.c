// enetloss sends messages over a simulated network with ENet, reliably and at a
// steady pace, and says how long each took.
//
//   enetloss SERVER_IP PORT BYTES INTERVAL_NS WARM_UP COUNT PATIENCE_NS
//
// The namespaces of the client's and the server's host are its descriptors 3 and 4. It
// talks in JSON lines: connected; then, when it was told to go, measuring as soon as
// the messages to warm up are sent; then what it measured.
#define _GNU_SOURCE
#include <enet/enet.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CLIENT_NS = 3, SERVER_NS = 4, CONNECT_MS = 10000, TICK_NS = 1000000 };

static void die(const char *what) {
	fprintf(stderr, "enetloss: %s\n", what);
	exit(1);
}

static long long now(void) {
	struct timespec t;
	if (clock_gettime(CLOCK_MONOTONIC, &t) < 0) die("clock_gettime");
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void say(const char *line) {
	puts(line);
	fflush(stdout);
}

// stamp is how a message begins.
struct stamp { long long number, sent; };

static long long warm_up, count, arrived;
static long long *took; // of the messages after warm_up; 0: not arrived

static void receive(const ENetPacket *p) {
	struct stamp s;
	memcpy(&s, p->data, sizeof s);
	s.number -= warm_up;
	if (s.number < 0 || s.number >= count || took[s.number]) return;
	took[s.number] = now() - s.sent;
	arrived++;
}

// service does what is due on a host.
static void service(ENetHost *h) {
	ENetEvent e;
	while (enet_host_service(h, &e, 0) > 0) {
		if (e.type == ENET_EVENT_TYPE_DISCONNECT) die("disconnected");
		if (e.type != ENET_EVENT_TYPE_RECEIVE) continue;
		receive(e.packet);
		enet_packet_destroy(e.packet);
	}
}

// wait_until serves both hosts until a time, or until all has arrived.
static void wait_until(long long until, ENetHost *a, ENetHost *b) {
	struct pollfd fds[2] = {{.fd = a->socket, .events = POLLIN}, {.fd = b->socket, .events = POLLIN}};
	for (;;) {
		service(a);
		service(b);
		long long left = until - now();
		if (left <= 0 || arrived == count) return;
		if (left > TICK_NS) left = TICK_NS; // for the timers of ENet
		struct timespec t = {0, left};
		ppoll(fds, 2, &t, NULL);
	}
}

static ENetPeer *connect_to(ENetHost *client, ENetHost *server, ENetAddress *a) {
	ENetPeer *p = enet_host_connect(client, a, 1, 0);
	if (!p) die("connect");
	ENetEvent e;
	for (int i = 0; i < CONNECT_MS; i++) {
		enet_host_service(server, &e, 0);
		if (enet_host_service(client, &e, 1) > 0 && e.type == ENET_EVENT_TYPE_CONNECT) return p;
	}
	die("connect: no answer");
	return NULL;
}

static int ascending(const void *a, const void *b) {
	long long x = *(const long long *)a, y = *(const long long *)b;
	return (x > y) - (x < y);
}

static void tell(void) {
	qsort(took, count, sizeof *took, ascending);
	printf("{\"Took\":[");
	const char *comma = "";
	for (long long i = count - arrived; i < count; i++, comma = ",") printf("%s%lld", comma, took[i]);
	say("]}");
}

int main(int argc, char **argv) {
	if (argc != 8) die("want 7 arguments");
	ENetAddress addr = {0};
	if (enet_address_set_host_ip(&addr, argv[1]) < 0) die("bad address");
	addr.port = atoi(argv[2]);
	long size = atol(argv[3]);
	long long interval = atoll(argv[4]), patience = atoll(argv[7]);
	warm_up = atoll(argv[5]);
	count = atoll(argv[6]);
	char *message = calloc(1, size);
	took = calloc(count, sizeof *took);
	if (!message || !took || size < (long)sizeof(struct stamp)) die("bad size");

	if (setns(SERVER_NS, CLONE_NEWNET) < 0) die("enter the server's namespace");
	ENetHost *server = enet_host_create(&addr, 1, 1, 0, 0);
	if (setns(CLIENT_NS, CLONE_NEWNET) < 0) die("enter the client's namespace");
	ENetHost *client = enet_host_create(NULL, 1, 1, 0, 0);
	if (!server || !client) die("create hosts");
	ENetPeer *peer = connect_to(client, server, &addr);
	say("{\"Connected\":true}");
	char go[16];
	if (!fgets(go, sizeof go, stdin)) die("not told to go");

	long long start = now();
	for (long long i = 0; i < warm_up + count; i++) {
		wait_until(start + i * interval, client, server);
		if (i == warm_up) say("{\"Measuring\":true}");
		struct stamp s = {i, now()};
		memcpy(message, &s, sizeof s);
		if (enet_peer_send(peer, 0, enet_packet_create(message, size, ENET_PACKET_FLAG_RELIABLE)) < 0) die("send");
		enet_host_flush(client);
	}
	wait_until(now() + patience, client, server);
	tell();
	while (fgets(go, sizeof go, stdin)) {}
	return 0;
}
